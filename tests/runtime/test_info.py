"""`paramorph-rt info`, with and without a GPU that the driver tells of."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from types import SimpleNamespace

import pytest

from paramorph_rt.backends import gpu
from paramorph_rt.cli import main

from .phantoms import NETWORK_SHAPE, read_manifest, replace_file, write_manifest

ENGINES = {  # file: version, compute capability
    "fits.engine": ("1.7.1.116", "8.6"),
    "older.engine": ("1.6.0.33", "8.6"),
    "ada.engine": ("1.7.1.116", "8.9"),
}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-of-nobody.so.1")


@pytest.fixture
def a_gpu(monkeypatch):
    """And the library of its engines."""
    found = gpu.Gpu("RTX 3080", "8.6", 10_000_000_000, "13.0")
    monkeypatch.setattr(gpu, "find_gpu", lambda: found)
    library = SimpleNamespace(__version__="1.7.1.116", __name__="tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)


@pytest.fixture
def bundle_with_engines(zero_bundle_path, tmp_path):
    folder = shutil.copytree(zero_bundle_path, tmp_path / "bundle")
    manifest = read_manifest(folder)
    manifest["engines"] = [
        {
            "file": file,
            "flavour": "tensorrt-rtx",
            "version": version,
            "compute_capability": capability,
            "precision": "fp16",
            "shape": list(NETWORK_SHAPE),
        }
        for file, (version, capability) in ENGINES.items()
    ]
    write_manifest(folder, manifest)
    for file in ENGINES:
        replace_file(folder, file, b"engine")
    return folder


def info(capsys, *arguments: object) -> dict:
    assert main(["info", "--json", *map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def by_name(found: dict) -> dict[str, dict]:
    return {way["name"]: way for way in found["backends"]}


def test_without_a_gpu(bundle_path, no_gpu, capsys):
    found = info(capsys, "--model", bundle_path)
    assert found["gpu"].startswith("GPU: expected one of NVIDIA and its driver, found no driver")
    assert "onnxruntime" in found["packages"]
    here = {"system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count()}
    assert found["platform"] == here | {"python": platform.python_version()}
    assert found["model"]["networks"] == [
        {
            "file": "registration.onnx",
            "precision": "fp32",
            "shape": list(NETWORK_SHAPE),
            "device": "cpu",
            "weights": None,
        }
    ]
    ways = by_name(found)
    assert ways["onnxruntime-cpu"]["precisions"] == ["fp32"]
    for name in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda"):
        assert (ways[name]["precisions"], ways[name]["why_not"]) == ([], found["gpu"])


def test_each_engine_says_why_it_cannot_be_used(bundle_with_engines, a_gpu, capsys):
    found = info(capsys, "--model", bundle_with_engines)
    assert found["gpu"]["compute_capability"] == "8.6"
    reasons = {engine["file"]: engine["why_not"] for engine in found["model"]["engines"]}
    assert reasons["fits.engine"] is None
    assert reasons["older.engine"].startswith(
        "older.engine: expected an engine of tensorrt-rtx for version 1.7.1.116, got 1.6.0.33"
    )
    assert (
        "for compute capability 8.6, got 8.9; build it: python export/build_engine.py"
        in (reasons["ada.engine"])
    )
    ways = by_name(found)
    assert ways["tensorrt-rtx"]["precisions"] == ["fp16"]
    assert "for flavour tensorrt, got tensorrt-rtx" in ways["tensorrt"]["why_not"]


def test_load_proves_it(bundle_path, no_gpu, capsys):
    ways = by_name(info(capsys, "--model", bundle_path, "--load"))
    assert list(ways["onnxruntime-cpu"]["load_seconds"]) == ["fp32"]


def test_load_finds_what_a_look_does_not(tmp_path, zero_bundle_path, no_gpu, capsys):
    folder = shutil.copytree(zero_bundle_path, tmp_path / "bundle")
    replace_file(folder, "registration.onnx", b"nothing")
    look = by_name(info(capsys, "--model", folder))["onnxruntime-cpu"]
    load = by_name(info(capsys, "--model", folder, "--load"))["onnxruntime-cpu"]
    assert look["precisions"] == ["fp32"]
    assert (load["precisions"], load["load_seconds"]) == ([], {})
    assert "expected a network that ONNX Runtime" in load["why_not"]


def test_table_is_for_people(bundle_with_engines, a_gpu, capsys):
    assert main(["info", "--model", str(bundle_with_engines)]) == 0
    table = capsys.readouterr().out
    for words in (
        f"Python {platform.python_version()}, {os.cpu_count()} CPU cores",
        "RTX 3080, compute capability 8.6, 10.0 GB, driver for CUDA 13.0",
        "fits.engine: fp16 at 20 × 24 × 16, tensorrt-rtx 1.7.1.116 for 8.6",
        "can be used",
        "--backend tensorrt-rtx: fp16",
        "no: bundle",
    ):
        assert words in table.replace("known-displacement", "bundle")


def test_no_gpu_is_said_once(bundle_path, no_gpu, capsys):
    assert main(["info", "--model", str(bundle_path)]) == 0
    table = capsys.readouterr().out
    assert table.count("found no driver") == 1
    assert "no: see GPU" in table


def test_a_shipped_model_by_its_name(capsys):
    assert info(capsys, "--model", "hippocampus-small")["model"]["name"] == "hippocampus-small"


def test_without_a_model(monkeypatch, no_gpu, tmp_path, capsys):
    monkeypatch.setenv("PARAMORPH_MODEL", str(tmp_path))
    found = info(capsys)
    assert "expected a bundle" in found["model"]
    assert "backends" not in found
    assert main(["info", "--model", str(tmp_path)]) == 1  # asked for by name
    assert capsys.readouterr().err.startswith(f"paramorph-rt: {tmp_path}: expected a bundle")


def test_version_names_the_engines(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert "(onnxruntime" in capsys.readouterr().out

"""Bundles with networks of several shapes: each pair takes the smallest that it fits into."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from paramorph_rt import Registration
from paramorph_rt.backends import NetworksByShape, choose_backend, gpu, ways_to_run
from paramorph_rt.bundle import load_bundle
from paramorph_rt.cli import main
from paramorph_rt.errors import BackendError
from paramorph_rt.images.volume import save_volume

from .phantoms import (
    NETWORK_SHAPE,
    centred_grid,
    head,
    read_manifest,
    replace_file,
    smooth_displacement_vox,
    volume_of,
    write_bundle,
    write_manifest,
)

LARGE_SHAPE = (28, 32, 20)
SIZES = {"small": 0.8, "large": 1.1, "huge": 1.8}  # times a head of 40 × 48 × 36 mm


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> dict[tuple, Path]:
    """A bundle for each shape; the networks' answers differ."""
    folder = tmp_path_factory.mktemp("single")
    return {
        NETWORK_SHAPE: write_bundle(folder / "first", smooth_displacement_vox()),
        LARGE_SHAPE: write_bundle(folder / "large", -smooth_displacement_vox(LARGE_SHAPE)),
    }


@pytest.fixture
def both(single, tmp_path) -> Path:
    """One bundle with both networks."""
    folder = write_bundle(tmp_path / "both", smooth_displacement_vox())
    replace_file(folder, "large.onnx", (single[LARGE_SHAPE] / "registration.onnx").read_bytes())
    manifest = read_manifest(folder)
    manifest["networks"].append(
        {"file": "large.onnx", "precision": "fp32", "shape": list(LARGE_SHAPE)}
    )
    write_manifest(folder, manifest)
    return folder


def pair_of(size: str):
    """A head of this size, twice, on different grids."""
    return [
        volume_of(
            head, centred_grid(code, (84, 96, 76), (1, 1, 1)), name, lambda p: p / SIZES[size]
        )
        for code, name in (("LAS", "moving.nii.gz"), ("RAS", "fixed.nii.gz"))
    ]


@pytest.mark.parametrize(
    ("size", "shape", "fits"),
    [("small", NETWORK_SHAPE, True), ("large", LARGE_SHAPE, True), ("huge", LARGE_SHAPE, False)],
)
def test_result_is_that_of_a_bundle_of_the_shape_alone(both, single, size, shape, fits):
    pair = pair_of(size)
    found = Registration(both, 1, "onnxruntime")(*pair, affine=False, refine=0)
    expected = Registration(single[shape], 1, "onnxruntime")(*pair, affine=False, refine=0)
    grid = found.metrics["network_grid"]
    assert grid == expected.metrics["network_grid"]
    assert tuple(grid["shape"]) == shape
    assert (grid["spacing_growth"] == 1) == fits
    np.testing.assert_array_equal(found.displacement.vectors_mm, expected.displacement.vectors_mm)
    np.testing.assert_array_equal(found.warped.data, expected.warped.data)


def test_networks_are_loaded_when_needed_and_stay():
    loaded, closed = [], []

    def load_of(shape):
        def load():
            loaded.append(shape)
            return SimpleNamespace(
                name="n",
                precision="fp32",
                run=lambda m, f: (shape, m, f),
                close=lambda: closed.append(shape),
            )

        return load

    backend = NetworksByShape({shape: load_of(shape) for shape in (NETWORK_SHAPE, LARGE_SHAPE)})
    assert loaded == [NETWORK_SHAPE]
    large = np.zeros(LARGE_SHAPE, np.float32)
    for _ in range(2):
        assert backend.run(large, large)[0] == LARGE_SHAPE
    assert loaded == [NETWORK_SHAPE, LARGE_SHAPE]
    with pytest.raises(BackendError, match=r"of shape \(20, 24, 16\) or \(28, 32, 20\), got \(9,"):
        backend.run(large[:9], large[:9])
    assert loaded == [NETWORK_SHAPE, LARGE_SHAPE]
    backend.close()
    backend.close()
    assert closed == loaded


def test_altered_network_of_another_shape_is_refused_when_needed(both):
    content = bytearray((both / "large.onnx").read_bytes())
    content[-1] ^= 1
    (both / "large.onnx").write_bytes(content)
    register = Registration(both, 1, "onnxruntime")
    register(*pair_of("small"), affine=False, refine=0)
    with pytest.raises(ValueError, match=r"large.onnx: expected SHA-256"):
        register(*pair_of("large"), affine=False, refine=0)


def test_engines_serve_the_shapes_that_they_were_built_for(both, monkeypatch, capsys):
    """An engine of the second shape alone: large heads and small ones run there."""
    found = gpu.Gpu("RTX 3080", "8.6", 10_000_000_000, "13.0")
    monkeypatch.setattr(gpu, "find_gpu", lambda: found)
    library = SimpleNamespace(__version__="1.7.1.116", __name__="tensorrt_rtx")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)
    replace_file(both, "large.engine", b"engine")
    manifest = read_manifest(both)
    entry = {"file": "large.engine", "flavour": "tensorrt-rtx", "version": "1.7.1.116"}
    entry |= {"compute_capability": "8.6", "precision": "fp16", "shape": list(LARGE_SHAPE)}
    manifest["engines"] = [entry]
    write_manifest(both, manifest)
    bundle = load_bundle(both)
    (way,) = (way for way in ways_to_run("tensorrt-rtx", "fp16") if way.name == "tensorrt-rtx")
    assert list(way.loads(bundle, "fp16", None)) == [LARGE_SHAPE]

    assert main(["info", "--model", str(both), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [engine["why_not"] for engine in told["model"]["engines"]] == [None]
    shapes = {way["name"]: way["shapes"] for way in told["backends"]}
    assert shapes["tensorrt-rtx"] == {"fp16": [list(LARGE_SHAPE)]}
    assert shapes["onnxruntime-cpu"] == {"fp32": [list(NETWORK_SHAPE), list(LARGE_SHAPE)]}
    assert main(["info", "--model", str(both)]) == 0
    assert "onnxruntime: fp32 at 20 × 24 × 16 or 28 × 32 × 20" in capsys.readouterr().out


def test_info_proves_every_shape(both, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-of-nobody.so.1")
    replace_file(both, "large.onnx", b"nothing")
    assert main(["info", "--model", str(both), "--load", "--json"]) == 0
    ways = {way["name"]: way for way in json.loads(capsys.readouterr().out)["backends"]}
    assert ways["onnxruntime-cpu"]["precisions"] == []
    assert ways["onnxruntime-cpu"]["why_not"].startswith("large.onnx: expected a network that ONNX")


def test_cohort_gives_each_pair_its_shape(both, tmp_path):
    rows = ["moving,fixed,name"]
    for size in ("small", "large"):
        for volume in pair_of(size):
            path = tmp_path / f"{size}-{volume.name}"
            save_volume(path, volume)
        rows.append(f"{size}-moving.nii.gz,{size}-fixed.nii.gz,{size}")
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    command = ["cohort", str(table), "--out-dir", str(out), "--model", str(both), "--no-affine"]
    assert main([*command, "--backend", "onnxruntime", "--threads", "1"]) == 0
    shapes = {}
    for size in ("small", "large"):
        metrics = json.loads((out / "pairs" / size / "metrics.json").read_text(encoding="utf-8"))
        shapes[size] = tuple(metrics["network_grid"]["shape"])
    assert shapes == {"small": NETWORK_SHAPE, "large": LARGE_SHAPE}


def test_backend_of_ones_own_says_which_shapes_it_takes(both):
    inner = choose_backend(load_bundle(both), "onnxruntime", threads=1)
    own = SimpleNamespace(name="own", precision="fp32", shapes=(LARGE_SHAPE,), run=inner.run)
    result = Registration(both, 1, own)(*pair_of("small"), affine=False, refine=0)
    assert tuple(result.metrics["network_grid"]["shape"]) == LARGE_SHAPE

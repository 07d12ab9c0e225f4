"""The GPU benchmark on the CPU, with a network that takes seconds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import gpu
from paramorph import CONFIGS, ParaMorph
from paramorph.checkpoint import WeightsInfo, save_weights

CONTENDERS = ("torch fp32", "torch fp16", "onnxruntime cuda fp32", "onnxruntime cpu fp32")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    config = CONFIGS["paramorph-tiny"]
    network = ParaMorph(config)
    with torch.no_grad():
        network.decoder.head.weight.normal_(std=0.1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, network.state_dict(), WeightsInfo("tiny", config, (32, 32, 32)))
    return path


def test_smooth_volumes_fill_the_range_without_jumps():
    volume = gpu.smooth_volume((32, 64, 96), 1)
    assert volume.shape == (32, 64, 96)
    assert 0 <= volume.min() < 0.1
    assert 0.9 < volume.max() <= 1
    assert max(np.abs(np.diff(volume, axis=axis)).max() for axis in range(3)) < 0.35


def test_what_runs_is_compared_and_what_does_not_says_why(weights, results, tmp_path, capsys):
    arguments = ["--device", "cpu", "--shape", "32", "32", "32", "--networks", str(weights)]
    arguments += ["--runs", "2", "--threads", "1", "--work", str(tmp_path)]
    assert gpu.main([*arguments, "--contenders", *CONTENDERS]) == 0
    result = json.loads((results / "gpu.json").read_text(encoding="utf-8"))
    (network,) = result["networks"]
    assert (network["network"], network["steps_that_failed"]) == ("tiny", [])
    assert network["largest_displacement_vox"] > 0.1
    rows = {row["contender"]: row for row in network["rows"]}
    assert list(rows) == list(CONTENDERS)
    assert rows["torch fp32"]["reference"]
    assert (rows["torch fp32"]["n"], len(rows["torch fp32"]["device_seconds"])) == (2, 2)
    assert rows["onnxruntime cpu fp32"]["max_difference_vox"] < 1e-3
    assert 0 < rows["torch fp16"]["mean_difference_vox"] < 0.05
    assert rows["onnxruntime cuda fp32"]["error"].startswith("GPU: expected one of NVIDIA")
    assert result["plugin"] == {"error": "needs a GPU"}
    page = (results / "gpu.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert "- onnxruntime cuda fp32: GPU: expected one of NVIDIA" in page
    assert "| onnxruntime cpu fp32 |" in page
    assert not list(tmp_path.glob("tmp*"))


def test_step_that_fails_is_told(results, tmp_path):
    arguments = ["--device", "cpu", "--shape", "33", "32", "32", "--work", str(tmp_path)]
    weights = tmp_path / "no.safetensors"
    weights.write_bytes(b"nothing")
    arguments += ["--networks", str(weights), "--contenders", "torch fp32"]
    assert gpu.main(arguments) == 0
    (network,) = json.loads((results / "gpu.json").read_text(encoding="utf-8"))["networks"]
    assert "expected a safetensors file" in network["steps_that_failed"][0]["error"]
    assert "expected a safetensors file" in network["rows"][0]["error"]
    assert "Not measured" in (results / "gpu.md").read_text(encoding="utf-8")


def test_a_gpu_that_is_not_there_is_refused_before_the_work(results, monkeypatch, capsys):
    from paramorph_rt.backends import gpu as driver

    monkeypatch.setattr(driver, "DRIVER", "libcuda-of-nobody.so.1")
    assert gpu.main([]) == 1
    assert capsys.readouterr().err.startswith("gpu.py: GPU: expected one of NVIDIA")
    assert not results.exists()

"""The GPU benchmark on the CPU, with a network that takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import gpu
import plugin_kernel
import record
import training_step
import volumes
from paramorph import CONFIGS, ParaMorph
from paramorph.checkpoint import WeightsInfo, save_weights
from paramorph.warp import grid_sample_3d

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
    volume = volumes.smooth_volume((32, 64, 96), 1)
    assert volume.shape == (32, 64, 96)
    assert 0 <= volume.min() < 0.1
    assert 0.9 < volume.max() <= 1
    assert max(np.abs(np.diff(volume, axis=axis)).max() for axis in range(3)) < 0.35


def test_what_runs_is_compared_and_what_does_not_says_why(
    weights, results, tmp_path, capsys, monkeypatch
):
    arguments = ["--device", "cpu", "--shape", "32", "32", "32", "--networks", str(weights)]
    arguments += ["--runs", "2", "--threads", "1", "--work", str(tmp_path)]
    out = tmp_path / "results" / "of" / "today"
    written = []
    kept = record.write_result
    note = lambda *a, **k: written.append(len(a[1]["networks"][0]["rows"])) or kept(*a, **k)  # noqa: E731
    monkeypatch.setattr(record, "write_result", note)
    command = [*arguments, "--out", str(out), "--contenders", *CONTENDERS]
    assert gpu.BENCHMARK.main(command) == 0
    assert written == [1, 2, 3, 4, 4]  # after every contender: who is cut short keeps them
    assert not (results / "gpu.json").exists()
    result = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
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
    page = (out / "gpu.md").read_text(encoding="utf-8")
    assert page in capsys.readouterr().out
    assert "- onnxruntime cuda fp32: GPU: expected one of NVIDIA" in page
    assert "| onnxruntime cpu fp32 |" in page
    assert not list(tmp_path.glob("tmp*"))


def test_step_that_fails_is_told(results, tmp_path):
    arguments = ["--device", "cpu", "--shape", "33", "32", "32", "--work", str(tmp_path)]
    weights = tmp_path / "no.safetensors"
    weights.write_bytes(b"nothing")
    arguments += ["--networks", str(weights)]
    assert (
        gpu.BENCHMARK.main([*arguments, "--contenders", "torch fp32", "onnxruntime cpu fp32"]) == 0
    )
    (network,) = json.loads((results / "gpu.json").read_text(encoding="utf-8"))["networks"]
    assert "expected a safetensors file" in network["steps_that_failed"][0]["error"]
    assert "expected a safetensors file" in network["rows"][0]["error"]
    assert "Failed, and left out above" in (results / "gpu.md").read_text(encoding="utf-8")


def test_a_gpu_that_is_not_there_is_refused_before_the_work(results, monkeypatch, capsys):
    from paramorph_rt.backends import gpu as driver

    monkeypatch.setattr(driver, "DRIVER", "libcuda-of-nobody.so.1")
    assert gpu.BENCHMARK.main([]) == 1
    assert capsys.readouterr().err.startswith("gpu.py: GPU: expected one of NVIDIA")
    assert not results.exists()


@pytest.mark.parametrize("name", ["brain-t1-smal", "paramorph:refined", "nowhere.safetensors"])
def test_a_misspelt_network_is_refused_before_the_work(results, capsys, name):
    """Random weights must not be measured under its name."""
    assert gpu.BENCHMARK.main(["--device", "cpu", "--networks", "paramorph", name]) == 1
    assert capsys.readouterr().err.startswith(f"gpu.py: {name}: expected a shipped model")
    assert not results.exists()


@pytest.mark.slow
def test_what_was_prepared_is_used(weights, results, tmp_path, capsys):
    """Exported once, elsewhere; the engine may be missing, for want of its library."""
    base = ["--shape", "32", "32", "32", "--networks", str(weights), "--threads", "1"]
    folder = tmp_path / "prepared"
    contender = ["--contenders", "onnxruntime cpu fp32"]
    assert gpu.BENCHMARK.main([*base, *contender, "--device", "cpu", "--prepare", str(folder)]) == 0
    bundle = folder / "tiny" / "bundle"
    networks = {path.name for path in bundle.glob("*.onnx")}
    networks = {name for name in networks if not name.startswith("refine")}
    assert networks == {f"registration{kind}.onnx" for kind in ("", ".gpu", ".fp16")}
    before = (bundle / "manifest.json").stat().st_mtime_ns
    arguments = [*base, *contender, "--device", "cpu", "--prepared", str(folder), "--runs", "1"]
    assert gpu.BENCHMARK.main([*arguments, "--work", str(tmp_path)]) == 0
    assert (bundle / "manifest.json").stat().st_mtime_ns == before
    (network,) = json.loads((results / "gpu.json").read_text(encoding="utf-8"))["networks"]
    assert network["rows"][0]["n"] == 1


@pytest.mark.slow
def test_features_with_their_refinement_are_a_network_too(results, tmp_path):
    arguments = ["--device", "cpu", "--networks", "hippocampus-small:refined", "--runs", "1"]
    arguments += ["--work", str(tmp_path), "--threads", "2", "--contenders", "torch fp32"]
    assert gpu.BENCHMARK.main([*arguments, "onnxruntime cpu fp32"]) == 0
    (network,) = json.loads((results / "gpu.json").read_text(encoding="utf-8"))["networks"]
    assert (network["network"], network["shape"]) == ("hippocampus-small-refined", [48, 64, 48])
    assert [row["contender"] for row in network["rows"]] == ["onnxruntime cpu fp32"]
    assert network["largest_displacement_vox"] > 1
    assert "Volumes of 48 × 64 × 48" in (results / "gpu.md").read_text(encoding="utf-8")


def test_training_steps_are_those_of_training(tmp_path, capsys):
    # Not 32, where the decoder begins at 2×2×2: there oneDNN computes gradients in bfloat16 from
    # memory that nobody wrote (PyTorch 2.13, a CPU without AMX).
    options = ["--size", "paramorph-tiny", "--shape", "64", "64", "64", "--seconds", "1"]
    assert training_step.BENCHMARK.main([*options, "--device", "cpu", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "training_step.json").read_text(encoding="utf-8"))["rows"]
    assert [(r["precision"], r["recompute"]) for r in rows] == list(training_step.VARIANTS)
    for row in rows:
        assert row["losses"][1] < row["losses"][0]
        assert row["steps_per_second"] > 0
    if not torch.cuda.is_available():
        assert training_step.BENCHMARK.main(["--out", str(tmp_path)]) == 1
        assert "expected PyTorch with a GPU, got one without" in capsys.readouterr().err


def test_kernel_is_held_to_pytorch_in_every_way_to_sample():
    """By PyTorch's own function in the kernel's place, and by one that is half a voxel off."""
    assert plugin_kernel.check(grid_sample_3d, "cpu") == 0

    def off(volume, displacement, *how):
        return grid_sample_3d(volume, displacement + 0.5, *how)

    with pytest.raises(AssertionError):
        plugin_kernel.check(off, "cpu")


def test_day_tells_of_every_step_what_came_of_it(tmp_path):
    """Without a GPU each refuses in a line, and the next one runs."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU, on which it would take minutes")
    script = Path(gpu.__file__).with_name("gpu_day.sh")
    environment = {**os.environ, "PYTHON": sys.executable, "PARAMORPH_REFERENCE": "/nowhere"}
    for part in ("first", "second"):
        command = [script, part, tmp_path / "out"]
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out" / "day.jsonl").read_text(encoding="utf-8").splitlines()
    steps = {line["step"]: line for line in map(json.loads, lines)}
    names = ["machine", "plugin-kernel", "golden", "torch", "engines", "refined", "training"]
    assert list(steps) == names
    for name in ("plugin-kernel", "torch", "engines", "refined", "training"):
        assert steps[name]["exit_code"] == 1
        assert "expected PyTorch with a GPU" in steps[name]["said"] or (
            "GPU: expected one of NVIDIA" in steps[name]["said"]
        )
    assert "golden outputs of the reference are not at hand" in steps["golden"]["said"]
    done = subprocess.run([script, "third", tmp_path], capture_output=True, check=False)
    assert done.returncode == 2

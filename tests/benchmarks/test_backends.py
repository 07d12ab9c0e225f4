"""Engines side by side on the phantoms."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

import backends
from paramorph_rt.errors import BundleError


def test_differences_are_lengths_over_all_voxels():
    zeros = np.zeros((3, 2, 5, 50), np.float32)
    moved = zeros.copy()
    moved[:, 0, 0, 0] = [2, 3, 6]
    found = backends.differences([zeros, zeros], [zeros, moved])
    assert found["max_difference_vox"] == 7
    assert found["mean_difference_vox"] == pytest.approx(7 / 1000)
    assert 0 <= found["p999_difference_vox"] < 7


def test_every_engine_is_measured_in_a_process_of_its_own(
    phantoms, bundle, results, monkeypatch, capsys
):
    pytest.importorskip("openvino", reason="needs openvino, of the extra openvino")
    arguments = [str(phantoms), "--model", str(bundle), "--runs", "3", "--threads", "1"]
    arguments += ["--engines", "onnxruntime:fp32,openvino:fp32"]
    monkeypatch.setattr(sys, "argv", ["backends.py", *arguments])
    assert backends.main() == 0
    result = json.loads((results / "backends.json").read_text())
    first, second = result["rows"]
    assert (first["engine"], second["engine"]) == ("onnxruntime:fp32", "openvino:fp32")
    for row in (first, second):
        assert row["n"] == len(row["seconds"]) == 3
        assert 0 < row["median_seconds"] <= row["p90_seconds"]
        assert row["peak_mb"] > 50
        assert 0.3 < row["dice"] < 1
    assert second["max_difference_vox"] == second["dice_change"] == 0
    assert "| openvino:fp32 |" in (results / "backends.md").read_text()


def test_unknown_engine_is_one_sentence(phantoms, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["backends.py", str(phantoms), "--engines", "abacus"])
    assert backends.main() == 1
    assert "--engines: expected some of onnxruntime:fp32" in capsys.readouterr().err


def test_error_of_the_other_process_is_raised_here(tmp_path):
    with (
        pytest.raises(BundleError, match="expected a bundle"),
        backends.contender("onnxruntime:fp32", str(tmp_path), 1),
    ):
        pass

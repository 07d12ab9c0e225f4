"""Exported networks in OpenVINO beside ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from paramorph_rt.backends.onnxruntime import OnnxRuntimeBackend

from .conftest import SHAPE

pytest.importorskip("openvino", reason="needs openvino, of the extra openvino")

from paramorph_rt.backends.openvino import OpenVinoBackend, has_bf16

NETWORK = "registration.onnx"
TOLERANCE_VOX = 1e-3  # float32, summed in another order


def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two smooth volumes in [0, 1]."""
    i, j, k = np.indices(SHAPE, np.float32)
    moving = np.sin(i / 5) * np.cos(j / 7 + k / 9)
    fixed = np.sin(i / 5 + 0.3) * np.cos(j / 8 + k / 9)
    return (moving + 1) / 2, (fixed + 1) / 2


def displacement_and_difference(path: Path, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """What ONNX Runtime finds, and how far OpenVINO is from it; absolute, in voxels."""
    expected = OnnxRuntimeBackend(path, threads=1).run(*pair())
    found = OpenVinoBackend(path, 1, precision).run(*pair())
    return np.abs(expected), np.abs(found - expected)


@pytest.mark.parametrize("sampling", ["exact", "reference"])
def test_one_pass_agrees_with_onnx_runtime(bundle, tmp_path, sampling):
    model = onnx.load(bundle / NETWORK)
    if sampling == "reference":  # it changes nothing in the file but the last node's attributes
        (node,) = (node for node in model.graph.node if node.op_type == "GridSample3D")
        for attribute in node.attribute:
            if attribute.name == "padding":
                attribute.s = b"zeros"
            if attribute.name == "align_corners":
                attribute.i = 0
    onnx.save(model, tmp_path / NETWORK)
    displacement, difference = displacement_and_difference(tmp_path / NETWORK, "fp32")
    assert difference.max() < TOLERANCE_VOX < 0.1 < displacement.max()


@pytest.mark.slow
def test_two_passes_agree_with_onnx_runtime(two_passes):
    displacement, difference = displacement_and_difference(two_passes, "fp32")
    assert difference.max() < TOLERANCE_VOX < 0.1 < displacement.max()


@pytest.mark.slow
@pytest.mark.skipif(not has_bf16(), reason="needs a CPU with bf16")
def test_two_passes_in_bf16_stay_close(two_passes):
    displacement, difference = displacement_and_difference(two_passes, "bf16")
    # Random weights amplify the rounding to 8 bits.
    assert 0.001 < difference.mean() / displacement.mean() < 0.15

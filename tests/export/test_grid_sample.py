"""The ONNX definition of GridSample3D against PyTorch's grid_sample behind the custom operator."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from paramorph.warp import grid_sample_3d
from paramorph_export.grid_sample import DOMAIN, OP_TYPE, STANDARD_OPSET, function_definition

SHAPE = (5, 6, 7)


def model_of(volume_type: int = TensorProto.FLOAT, **attributes: object) -> onnx.ModelProto:
    node = helper.make_node(
        OP_TYPE, ["volume", "displacement"], ["warped"], domain=DOMAIN, **attributes
    )
    graph = helper.make_graph(
        [node],
        "sample",
        [
            helper.make_tensor_value_info("volume", volume_type, (2, 2, *SHAPE)),
            helper.make_tensor_value_info("displacement", TensorProto.FLOAT, (2, 3, *SHAPE)),
        ],
        [helper.make_tensor_value_info("warped", volume_type, (2, 2, *SHAPE))],
    )
    opsets = [helper.make_opsetid("", STANDARD_OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function_definition()])
    model.ir_version = 10
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, volume: torch.Tensor, displacement: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    inputs = {"volume": volume.numpy(), "displacement": displacement.numpy()}
    return session.run(None, inputs)[0]


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    volume = torch.rand(2, 2, *SHAPE, generator=generator)
    return volume, torch.randn(2, 3, *SHAPE, generator=generator) * 3  # many samples fall outside


@pytest.mark.parametrize(
    ("interpolation", "padding", "align_corners"),
    list(itertools.product(["linear", "nearest"], ["border", "zeros"], [True, False])),
)
def test_definition_equals_the_torch_operator(pair, interpolation, padding, align_corners):
    model = model_of(interpolation=interpolation, padding=padding, align_corners=int(align_corners))
    expected = grid_sample_3d(*pair, interpolation, padding, align_corners).numpy()
    np.testing.assert_allclose(run(model, *pair), expected, atol=2e-5)


def test_defaults_are_those_of_the_torch_operator(pair):
    np.testing.assert_allclose(run(model_of(), *pair), grid_sample_3d(*pair).numpy(), atol=2e-5)


def test_half_precision_volumes_keep_their_type(pair):
    volume, displacement = pair
    warped = run(model_of(TensorProto.FLOAT16), volume.half(), displacement)
    assert warped.dtype == np.float16
    expected = grid_sample_3d(volume.half(), displacement).float().numpy()
    np.testing.assert_allclose(warped.astype(np.float32), expected, atol=1e-3)


def test_definition_is_made_of_standard_operators():
    definition = function_definition()
    assert {node.domain for node in definition.node} == {""}
    assert [(o.domain, o.version) for o in definition.opset_import] == [("", STANDARD_OPSET)]
    attributes = {a.name for a in definition.attribute_proto} | set(definition.attribute)
    assert attributes == {"interpolation", "padding", "align_corners"}

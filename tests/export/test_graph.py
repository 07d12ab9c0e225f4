"""Rewrites for GPUs: each computes what was there before, and only where it is worth it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from paramorph_export import graph as graph_module
from paramorph_export.graph import doubling_matrix, rewrite_for_gpus

SHAPE = (6, 4, 5)  # three different sides, the first with divisors
DOUBLING = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(nodes, inputs: dict, outputs: dict, constants: dict) -> onnx.ModelProto:
    def infos(shapes):
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]

    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", infos(inputs), infos(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    whole = ir.from_proto(model)
    rewrite_for_gpus(whole)
    result = ir.to_proto(whole)
    onnx.checker.check_model(result, full_check=True)
    return result


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feeds = {i.name: random(*i.shape, seed=n) for n, i in enumerate(session.get_inputs())}
    return session.run(None, feeds)


def operators(model: onnx.ModelProto) -> Counter:
    return Counter(node.op_type for node in model.graph.node)


def check_same(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    for a, b in zip(run(before), run(after), strict=True):
        assert np.abs(a).max() > 0.1
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture
def wide() -> onnx.ModelProto:
    """A widening of 3 to 12 channels and back."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["wide"]),
        helper.make_node("Gelu", ["wide"], ["active"]),
        helper.make_node("Conv", ["active", "w2", "b2"], ["y"]),
    ]
    constants = {"w1": random(12, 3, 1, 1, 1), "b1": random(12)}
    constants |= {"w2": random(2, 12, 1, 1, 1), "b2": random(2)}
    return model_of(nodes, {"x": [2, 3, *SHAPE]}, {"y": [2, 2, *SHAPE]}, constants)


@pytest.fixture
def joined() -> onnx.ModelProto:
    """A convolution of two volumes side by side."""
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "w"], ["y"], pads=[1] * 6),
    ]
    inputs = {"a": [1, 3, *SHAPE], "b": [1, 2, *SHAPE]}
    return model_of(nodes, inputs, {"y": [1, 4, *SHAPE]}, {"w": random(4, 5, 3, 3, 3)})


def upsampled(times: int) -> onnx.ModelProto:
    """As many volumes of one size, doubled."""
    nodes = [
        helper.make_node("Resize", [f"x{n}", "", "scales"], [f"y{n}"], **DOUBLING)
        for n in range(times)
    ]
    inputs = {f"x{n}": [1, 2, *SHAPE] for n in range(times)}
    outputs = {f"y{n}": [1, 2, *(2 * side for side in SHAPE)] for n in range(times)}
    return model_of(nodes, inputs, outputs, {"scales": np.float32([1, 1, 2, 2, 2])})


def test_doubling_matrix_interpolates_as_pytorch_does():
    line = torch.arange(7.0) ** 2
    expected = F.interpolate(line[None, None], scale_factor=2, mode="linear", align_corners=False)
    np.testing.assert_allclose(doubling_matrix(7) @ line.numpy(), expected[0, 0].numpy())


def test_upsampling_that_occurs_twice_becomes_products():
    before = upsampled(2)
    after = rewritten(before)
    assert "Resize" not in operators(after)
    assert operators(after)["MatMul"] == 6
    check_same(before, after)


def test_upsampling_that_occurs_once_stays():
    assert operators(rewritten(upsampled(1))) == {"Resize": 1}


def test_wide_features_come_in_slabs_of_equal_depth(wide, monkeypatch):
    monkeypatch.setattr(graph_module, "LARGEST_NUMBERS", 2 * 12 * 4 * 5 * 2)  # a third
    after = rewritten(wide)
    assert operators(after) == {"Split": 1, "Conv": 6, "Gelu": 3, "Concat": 1}
    check_same(wide, after)


def test_a_depth_that_cannot_be_cut_finely_enough_is_cut_into_single_planes(wide, monkeypatch):
    monkeypatch.setattr(graph_module, "LARGEST_NUMBERS", 1)
    after = rewritten(wide)
    assert operators(after)["Gelu"] == SHAPE[0]
    check_same(wide, after)


def test_only_pointwise_convolutions_are_cut(wide, monkeypatch):
    monkeypatch.setattr(graph_module, "LARGEST_NUMBERS", 1)
    (w1,) = (t for t in wide.graph.initializer if t.name == "w1")
    w1.CopyFrom(numpy_helper.from_array(random(12, 3, 3, 3, 3), "w1"))
    wide.graph.node[0].attribute.append(helper.make_attribute("pads", [1] * 6))
    assert operators(rewritten(wide))["Gelu"] == 1


def test_a_convolution_of_two_joined_volumes_becomes_a_sum(joined, monkeypatch):
    monkeypatch.setattr(graph_module, "LARGEST_NUMBERS", 5 * 6 * 4 * 5 - 1)
    after = rewritten(joined)
    assert operators(after) == {"Conv": 2, "Add": 1}
    check_same(joined, after)


def test_small_features_stay_whole(wide, joined):
    assert operators(rewritten(wide)) == operators(wide)
    assert operators(rewritten(joined)) == operators(joined)


def test_masks_become_their_patterns():
    patterns = random(3, 1, 5, 5)
    mask = patterns[np.random.default_rng(1).integers(0, 3, 12)]
    nodes = [helper.make_node("Add", ["x", "mask"], ["y"])]
    shape = [1, 1, 12, 2, 5, 5]
    before = model_of(nodes, {"x": shape}, {"y": shape}, {"mask": mask})
    after = rewritten(before)
    assert operators(after) == {"Gather": 1, "Add": 1}
    sizes = {t.name: len(t.dims) and t.dims[0] for t in after.graph.initializer}
    assert sorted(sizes.values()) == [3, 12]
    check_same(before, after)

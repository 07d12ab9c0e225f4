"""Rewrites of graphs: each computes what was there before, and only where it is worth it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import ir

from paramorph import CONFIGS
from paramorph.cross_attention import CrossAttention
from paramorph.encoder import Features
from paramorph.swin import SwinStage
from paramorph.windows import merge_table, window_layout
from paramorph_export import attention as attention_module
from paramorph_export import volumes as volumes_module
from paramorph_export.graph import for_cpus, rewrite_for_gpus
from paramorph_export.trace import traced

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
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


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


def upsampled(times: int, channels: int = 2) -> onnx.ModelProto:
    """As many volumes of one size, doubled."""
    nodes = [
        helper.make_node("Resize", [f"x{n}", "", "scales"], [f"y{n}"], **DOUBLING)
        for n in range(times)
    ]
    inputs = {f"x{n}": [1, channels, *SHAPE] for n in range(times)}
    outputs = {f"y{n}": [1, channels, *(2 * side for side in SHAPE)] for n in range(times)}
    return model_of(nodes, inputs, outputs, {"scales": np.float32([1, 1, 2, 2, 2])})


def test_upsampling_that_occurs_before_gets_another_shape():
    before = upsampled(3, channels=6)
    after = rewritten(before)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in after.graph.value_info}
    moved = [n.output[0] for n in after.graph.node if n.op_type == "Reshape"]
    batches = [[d.dim_value for d in shapes[name]][:2] for name in moved if name in shapes]
    assert batches == [[6, 1], [3, 2]]
    assert operators(after) == {"Resize": 3, "Reshape": 4}
    check_same(before, after)


def test_upsampling_that_occurs_once_stays():
    assert operators(rewritten(upsampled(1))) == {"Resize": 1}


def test_wide_features_come_in_slabs_of_equal_depth(wide, monkeypatch):
    monkeypatch.setattr(volumes_module, "LARGEST_NUMBERS", 2 * 12 * 4 * 5 * 2)  # a third
    after = rewritten(wide)
    assert operators(after) == {"Split": 1, "Conv": 6, "Gelu": 3, "Concat": 1}
    check_same(wide, after)


def test_the_graph_for_cpus_has_slabs_and_its_shapes(wide):
    after = for_cpus(wide, 2 * 12 * 4 * 5 * 3)
    assert operators(after) == {"Split": 1, "Conv": 4, "Gelu": 2, "Concat": 1}
    check_same(wide, after)
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in after.graph.value_info}
    assert all(name in shapes for node in after.graph.node[:-1] for name in node.output)
    assert operators(for_cpus(wide)) == operators(wide)


def test_a_depth_that_cannot_be_cut_finely_enough_is_cut_into_single_planes(wide, monkeypatch):
    monkeypatch.setattr(volumes_module, "LARGEST_NUMBERS", 1)
    after = rewritten(wide)
    assert operators(after)["Gelu"] == SHAPE[0]
    check_same(wide, after)


def test_only_pointwise_convolutions_are_cut(wide, monkeypatch):
    monkeypatch.setattr(volumes_module, "LARGEST_NUMBERS", 1)
    (w1,) = (t for t in wide.graph.initializer if t.name == "w1")
    w1.CopyFrom(numpy_helper.from_array(random(12, 3, 3, 3, 3), "w1"))
    wide.graph.node[0].attribute.append(helper.make_attribute("pads", [1] * 6))
    assert operators(rewritten(wide))["Gelu"] == 1


def test_a_convolution_of_two_joined_volumes_becomes_a_sum(joined, monkeypatch):
    monkeypatch.setattr(volumes_module, "LARGEST_NUMBERS", 5 * 6 * 4 * 5 - 1)
    after = rewritten(joined)
    assert operators(after) == {"Conv": 2, "Add": 1}
    check_same(joined, after)


def test_small_features_stay_whole(wide, joined):
    assert operators(rewritten(wide)) == operators(wide)
    assert operators(rewritten(joined)) == operators(joined)


def test_masks_become_their_patterns_all_at_once():
    patterns = np.where(random(3, 1, 5, 5) > 0, -100, 0).astype(np.float32)
    windows = {"m0": 12, "m1": 4, "m2": 1}  # one window is no pattern of several
    masks = {n: patterns[np.random.default_rng(1).integers(0, 3, c)] for n, c in windows.items()}
    shapes = {f"x{n[1]}": [1, 1, count, 2, 5, 5] for n, count in windows.items()}
    nodes = [helper.make_node("Add", [f"x{n}", f"m{n}"], [f"y{n}"]) for n in range(3)]
    outputs = {f"y{name[1]}": shape for name, shape in shapes.items()}
    before = model_of(nodes, shapes, outputs, masks)
    after = rewritten(before)
    assert operators(after) == {"Gather": 1, "Where": 1, "Slice": 2, "Add": 3}
    tables = {tuple(t.dims) for t in after.graph.initializer}
    assert {(3, 1, 5, 5), (16,), (1, 1, 5, 5)} <= tables
    check_same(before, after)


@pytest.mark.parametrize("masked", [True, False])
def test_position_biases_come_from_one_table(masked):
    """Through a softmax, which sees no difference between a mask with a bias and one without."""
    of_pair = np.add.outer(np.arange(4), -np.arange(4)) + 3
    constants = {"b0": random(2, 7)[:, of_pair], "b1": random(3, 7, seed=1)[:, of_pair]}
    nodes = [
        helper.make_node("Add", ["x0", "b0"], ["z0"]),
        helper.make_node("Add", ["x1", "b1"], ["biased"]),
    ]
    if masked:
        constants["m"] = np.float32(-100) * (np.eye(4, dtype=np.float32) == 0)[None, None]
        nodes.append(helper.make_node("Add", ["biased", "m"], ["z1"]))
    ends = ["z0", "z1" if masked else "biased"]
    nodes += [helper.make_node("Softmax", [end], [f"y{n}"]) for n, end in enumerate(ends)]
    shapes = {"x0": [1, 5, 2, 4, 4], "x1": [1, 5, 3, 4, 4]}
    before = model_of(nodes, shapes, {"y0": shapes["x0"], "y1": shapes["x1"]}, constants)
    after = rewritten(before)
    assert operators(after) == {"Gather": 1, "Slice": 2, "Add": 2, "Softmax": 2}
    tables = {tuple(t.dims) for t in after.graph.initializer}
    assert {(5, 8), (8 if masked else 4, 4)} <= tables  # the eighth column is the mask's
    check_same(before, after)


def test_patch_merging_needs_no_table():
    table = merge_table((4, 6, 2), torch.device("cpu")).numpy()
    nodes = [
        helper.make_node("Gather", ["x", "table"], ["picked"], axis=1),
        helper.make_node("Reshape", ["picked", "sizes"], ["merged"]),
        helper.make_node("LayerNormalization", ["merged", "scale", "bias"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "w"], ["y"]),
    ]
    constants = {"table": table, "sizes": np.array([2, 6, 24]), "scale": random(24)}
    constants |= {"bias": random(24, seed=1), "w": random(24, 6, seed=2)}
    before = model_of(nodes, {"x": [2, 48, 3]}, {"y": [2, 6, 6]}, constants)
    after = rewritten(before)
    assert "Gather" not in operators(after)
    assert operators(after)["Transpose"] == 1
    check_same(before, after)
    constants["table"] = table[::-1].copy()
    other = model_of(nodes, {"x": [2, 48, 3]}, {"y": [2, 6, 6]}, constants)
    assert operators(rewritten(other)) == operators(other)


def pointwise(x: str, w: str, y: str, bias: str | None = None) -> list[onnx.NodeProto]:
    return [helper.make_node("Conv", [x, w, *([bias] if bias else [])], [y])]


@pytest.mark.parametrize(("channels", "joined"), [(3, 6), (4, 8)])
def test_a_skip_of_few_channels_is_part_of_the_convolution_behind_it(channels, joined):
    """Its bias as well, which ends where the volume does; of an even number of channels."""
    nodes = [
        *pointwise("few", "w1", "skip", "b1"),
        helper.make_node("Concat", ["x", "skip"], ["joined"], axis=1),
        helper.make_node("Conv", ["joined", "w2"], ["y"], pads=[1] * 6),
    ]
    constants = {
        "w1": random(5, 2, 1, 1, 1),
        "b1": random(5),
        "w2": random(4, 5 + channels, 3, 3, 3),
    }
    inputs = {"few": [1, 2, *SHAPE], "x": [1, channels, *SHAPE]}
    before = model_of(nodes, inputs, {"y": [1, 4, *SHAPE]}, constants)
    after = rewritten(before)
    assert operators(after) == {"Pad": 1, "Concat": 1, "Conv": 1}
    (weights,) = (t for t in after.graph.initializer if len(t.dims) == 5)
    assert weights.dims[1] == joined
    check_same(before, after)


def normed(channels: int, size: tuple[int, ...], pads: int = 0) -> onnx.ModelProto:
    """A convolution of each channel by itself, a norm, and a convolution behind it."""
    kernel = [2 * pads + 1] * 3
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["own"], pads=[1] * 6, group=channels),
        helper.make_node("InstanceNormalization", ["own", "scale", "bias"], ["normed"]),
        helper.make_node("Conv", ["normed", "w", "b"], ["y"], pads=[pads] * 6),
    ]
    constants = {"w0": random(channels, 1, 3, 3, 3), "scale": random(channels) + 2}
    constants |= {"bias": random(channels, seed=1), "w": random(3, channels, *kernel)}
    shapes = {"x": [2, channels, *size]}, {"y": [2, 3, *size]}
    return model_of(nodes, *shapes, constants | {"b": random(3)})


def test_norms_over_few_voxels_are_norms_of_rows():
    before = normed(4, SHAPE)
    after = rewritten(before)
    assert operators(after) == {"Conv": 2, "LayerNormalization": 1, "Reshape": 2}
    check_same(before, after)


@pytest.mark.parametrize(
    ("channels", "size", "pads"),
    [
        (4, (40, 40, 40), 0),  # many voxels
        (4, (17, 19, 17), 0),  # not so many, but no equal parts
        (4, SHAPE, 1),  # a scale that cannot be part of what is behind it, because of the border
    ],
)
def test_other_norms_stay(channels, size, pads):
    before = normed(channels, size, pads)
    after = rewritten(before)
    assert operators(after) == {"Conv": 2, "InstanceNormalization": 1}
    check_same(before, after)


def test_norms_over_some_more_voxels_are_added_up_from_parts():
    before = normed(4, (20, 20, 20))
    after = rewritten(before)
    found = operators(after)
    assert (found["InstanceNormalization"], found["ReduceMean"]) == (0, 2)
    check_same(before, after)


@pytest.mark.parametrize("pads", [0, 1])  # with a scale of its own
@pytest.mark.parametrize("channels", [1, 2])
def test_norms_of_few_channels_take_two_steps(channels, pads):
    before = normed(channels, (12, 10, 14), pads)
    after = rewritten(before)
    found = operators(after)
    assert (found["InstanceNormalization"], found["ReduceMean"]) == (0, 4)
    check_same(before, after)


@pytest.mark.parametrize(("channels", "size", "sums"), [(1, (12, 10, 14), 4), (3, (20, 20, 20), 2)])
def test_norms_by_statistics_are_exact_where_the_mean_is_large(channels, size, sums):
    node = helper.make_node("InstanceNormalization", ["shifted", "scale", "bias"], ["y"])
    shift = helper.make_node("Add", ["x", "mean"], ["shifted"])
    constants = {"mean": [1000], "scale": np.ones(channels), "bias": np.zeros(channels)}
    shapes = {"x": [1, channels, *size]}, {"y": [1, channels, *size]}
    constants = {name: np.float32(array) for name, array in constants.items()}
    after = rewritten(model_of([shift, node], *shapes, constants))
    assert operators(after)["ReduceMean"] == sums
    values = (random(1, channels, *size) + np.float32(1000)).astype(np.float64)
    # Of the mean square and the squared mean, float32 keeps 0.06 of a variance of 1.
    mean, variance = (f(values, axis=(2, 3, 4), keepdims=True) for f in (np.mean, np.var))
    truth = (values - mean) / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(run(after)[0], truth, atol=2e-3)


@pytest.mark.parametrize(("channels", "groups"), [(6, 3), (3, 3), (2, 2)])
def test_channels_are_convolved_in_pairs(channels, groups):
    before = normed(channels, SHAPE)
    after = rewritten(before)
    (first, *_) = (n for n in after.graph.node if n.op_type == "Conv")
    assert {a.name: helper.get_attribute_value(a) for a in first.attribute}["group"] == groups
    check_same(before, after)


@pytest.mark.parametrize(("channels", "elements"), [(1, True), (2, True), (3, False)])
def test_narrow_blocks_are_arithmetic_on_elements(channels, elements):
    nodes = [
        *pointwise("x", "w1", "wide", "b1"),
        helper.make_node("Gelu", ["wide"], ["active"]),
        *pointwise("active", "w2", "y", "b2"),
    ]
    constants = {"w1": random(8, channels, 1, 1, 1), "b1": random(8)}
    constants |= {"w2": random(channels, 8, 1, 1, 1, seed=1), "b2": random(channels)}
    shapes = {"x": [2, channels, *SHAPE]}, {"y": [2, channels, *SHAPE]}
    before = model_of(nodes, *shapes, constants)
    after = rewritten(before)
    assert ("Conv" in operators(after)) is not elements
    assert operators(after)["ReduceSum"] == (channels if elements else 0)
    check_same(before, after)


@pytest.mark.parametrize(("channels", "elements"), [(1, True), (2, True), (3, False)])
def test_what_widens_few_channels_takes_its_shortcut_along(channels, elements):
    nodes = [
        *pointwise("x", "w1", "wide", "b1"),
        helper.make_node("Gelu", ["wide"], ["active"]),
        *pointwise("active", "w2", "main", "b2"),
        helper.make_node("Conv", ["whole", "w3", "b3"], ["shortcut"], strides=[2, 2, 2]),
        helper.make_node("Add", ["main", "shortcut"], ["y"]),
    ]
    constants = {"w1": random(8, channels, 1, 1, 1), "b1": random(8)}
    constants |= {"w2": random(5, 8, 1, 1, 1, seed=1), "b2": random(5)}
    constants |= {"w3": random(5, channels, 1, 1, 1, seed=2), "b3": random(5, seed=1)}
    half = [math.ceil(side / 2) for side in SHAPE]
    inputs = {"x": [2, channels, *half], "whole": [2, channels, *SHAPE]}
    before = model_of(nodes, inputs, {"y": [2, 5, *half]}, constants)
    after = rewritten(before)
    assert operators(after)["Conv"] == (1 if elements else 3)
    check_same(before, after)


def test_two_volumes_of_a_batch_are_convolved_as_channels():
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["batch"], axis=0),
        helper.make_node("Conv", ["batch", "w1", "b1"], ["patches"], strides=[2, 2, 2]),
        helper.make_node("Conv", ["batch", "w2"], ["own"], pads=[1] * 6),
        helper.make_node("Add", ["batch", "own"], ["y"]),
    ]
    constants = {"w1": random(4, 1, 2, 2, 2), "b1": random(4), "w2": random(1, 1, 3, 3, 3)}
    inputs = {name: [1, 1, *SHAPE] for name in ("a", "b")}
    outputs = {"patches": [2, 4, *(side // 2 for side in SHAPE)], "y": [2, 1, *SHAPE]}
    before = model_of(nodes, inputs, outputs, constants)
    after = rewritten(before)
    assert operators(after) == {"Concat": 2, "Conv": 2, "Reshape": 2, "Add": 1}
    check_same(before, after)


def test_tokens_are_channels_side_by_side():
    """There and back, without an axis of all voxels behind the channels."""
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["columns"]),
        helper.make_node("Transpose", ["columns"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("Add", ["tokens", "b"], ["added"]),
        helper.make_node("Transpose", ["added"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["turned", "sizes"], ["y"]),
    ]
    constants = {"flat": np.array([2, 3, 120]), "sizes": np.array([2, 3, *SHAPE]), "b": random(3)}
    before = model_of(nodes, {"x": [2, 3, *SHAPE]}, {"y": [2, 3, *SHAPE]}, constants)
    after = rewritten(before)
    perms = [list(n.attribute[0].ints) for n in after.graph.node if n.op_type == "Transpose"]
    assert perms == [[0, 2, 3, 4, 1], [0, 4, 1, 2, 3]]
    check_same(before, after)


class Looking(torch.nn.Module):
    """Each volume's tokens after a look at the other's, of one scale with padded windows or not."""

    def __init__(self, size: tuple[int, int, int], **options: object) -> None:
        super().__init__()
        config = CONFIGS["paramorph-tiny"].with_options(window=(2, 3, 2), **options)
        self.size, self.cross = size, CrossAttention(8, config)
        self.stage = SwinStage(8, 2, config, [0.0, 0.0])

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        both = self.stage(torch.cat([moving, fixed]), self.size)
        other = torch.cat(both.chunk(2)[::-1])
        return self.cross(Features(both, self.size), Features(other, self.size)).tokens


@pytest.mark.parametrize("zeros", [0, attention_module.MOST_ZEROS], ids=["apart", "beside"])
@pytest.mark.parametrize(
    ("size", "window_return"),
    [((4, 6, 2), "exact"), ((3, 7, 2), "reference"), ((2, 3, 2), "exact")],
    ids=["whole", "padded", "one"],
)
def test_attention_is_done_slot_by_slot(size, window_return, zeros, monkeypatch):
    """Nothing but the norm's order and two views around each attention; padding is zeros.

    Queries of the other volume are a product of their own, or of both tokens beside one another.
    """
    monkeypatch.setattr(attention_module, "MOST_ZEROS", zeros)
    torch.manual_seed(0)
    module = Looking(size, window_return=window_return).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(-1, 1)
    examples = tuple(torch.from_numpy(random(1, math.prod(size), 8, seed=n)) for n in range(2))
    for shifted in (False, True):
        window_layout(size, module.cross.config, shifted, torch.device("cpu"))
    before = traced(module, examples, ("y",))
    after = rewritten(before)
    check_same(before, after)
    shapes = {v.name: v.type.tensor_type.shape.dim for v in after.graph.value_info}
    turned = [shapes[n.output[0]] for n in after.graph.node if n.op_type == "Transpose"]
    assert [len(shape) for shape in turned] == 4 * 5 * [4]
    widths = {shape[3].dim_value for n, shape in enumerate(turned) if n % 5 == 0}
    assert widths == {16}  # four channels, and zeros
    kinds = operators(after)
    # Joined are both volumes, and in the second look what it was before with what it is now.
    assert (kinds["Softmax"], kinds["Concat"]) == (4, 2 if zeros else 1)
    assert not {"Pad", "Split"} & kinds.keys()
    assert (kinds["Where"] > 1) is (size == (3, 7, 2))  # of padding, besides the masks' one

"""Half graphs: which types they have, what their emulation rounds, what their export refuses."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from paramorph_export import bundle as bundle_module
from paramorph_export import verify as verify_module
from paramorph_export import volumes as volumes_module
from paramorph_export.engine import add_engines
from paramorph_export.errors import ExportError
from paramorph_export.precision import LARGEST, emulated, with_precision
from paramorph_export.verify import GraphSession, extreme_pairs, random_pair, verify_half
from paramorph_rt.bundle import load_bundle

from ..runtime.phantoms import head, head_labels
from .conftest import NETWORK, SHAPE, write_weights

MEASURED = {"reference": "nothing", "mean_difference_vox": 0.0, "max_difference_vox": 0.0}
HALF_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module")
def calm(two_passes, tmp_path_factory) -> Path:
    """The graph of two passes with a tenth of the displacement, which random weights overdo."""
    model = onnx.load(two_passes)
    (head,) = (t for t in model.graph.initializer if t.name == "network.decoder.head.weight")
    scaled = numpy_helper.to_array(head) * np.float32(0.1)
    head.CopyFrom(numpy_helper.from_array(scaled, head.name))
    path = tmp_path_factory.mktemp("calm") / NETWORK
    onnx.save(model, path)
    return path


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value, by its name, as ONNX itself infers it."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


IN_HALF = {"MatMul", "Softmax", "LayerNormalization", "InstanceNormalization", "LeakyRelu"}


@pytest.mark.parametrize(("precision", "parts"), [("fp16", volumes_module.PARTS), ("bf16", 1)])
def test_what_is_half_and_what_is_not(two_passes, precision, parts, monkeypatch):
    """With norms in parts, and with those that stay as they are."""
    monkeypatch.setattr(volumes_module, "PARTS", parts)
    model = with_precision(onnx.load(two_passes), precision)
    onnx.checker.check_model(model, full_check=True)
    types, half = types_of(model), HALF_TYPES[precision]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT, value.name
    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    reader = {name: node.op_type for node in model.graph.node for name in node.input}
    seen = set()
    for node in model.graph.node:
        type_ = types[node.output[0]]
        match node.op_type:
            case op if op in IN_HALF:
                expected = half
            case "Gelu":  # by elements, or of features
                by_elements = reader[node.output[0]] in ("Mul", "Concat")
                expected = TensorProto.FLOAT if by_elements else half
            case "GridSample3D" | "Mul" | "ReduceSum" | "ReduceMean" | "Sub" | "Div" | "Sqrt":
                expected = TensorProto.FLOAT
            case "Conv":
                out_channels, in_channels, *_ = weights[node.input[1]]
                is_head = out_channels == 3  # what it gives is a displacement
                expected = TensorProto.FLOAT if in_channels == 1 or is_head else half
                seen |= {"head"} if is_head else set()
            case _:
                continue
        assert type_ == expected, node.name
        seen.add((node.op_type, type_))
    both = {(op, t) for op in ("Conv", "Gelu") for t in (half, TensorProto.FLOAT)}
    assert {"head", ("MatMul", half), *both, ("ReduceMean", TensorProto.FLOAT)} <= seen
    assert (("InstanceNormalization", half) in seen) is (parts == 1)


def test_float32_for_gpus_is_rewritten_and_computes_the_same(two_passes):
    model = onnx.load(two_passes)
    rewritten = with_precision(model, "fp32")
    assert {t.data_type for t in rewritten.graph.initializer} <= {
        *(TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    }
    shapes = {v.name: v.type.tensor_type.shape.dim for v in rewritten.graph.value_info}
    doubled = [n.output[0] for n in rewritten.graph.node if n.op_type == "Resize"]
    assert [shapes[name][0].dim_value > 1 for name in doubled] == 5 * [False] + 5 * [True]
    pair = random_pair(SHAPE, 3)
    (expected,), (found,) = (
        GraphSession(m).run(*pair, ["displacement"]) for m in (model, rewritten)
    )
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_given_graph_is_not_changed(two_passes):
    model = onnx.load(two_passes)
    before = model.SerializeToString()
    with_precision(model, "fp16")
    assert model.SerializeToString() == before


def test_half_weights_take_half_the_space(two_passes):
    model = onnx.load(two_passes)
    sizes = []
    for graph in (model.graph, with_precision(model, "fp16").graph):
        floats = (t for t in graph.initializer if t.data_type != TensorProto.INT64)
        sizes.append(sum(numpy_helper.to_array(t).nbytes for t in floats))
    assert sizes[1] < 0.55 * sizes[0]


def product_and_sum(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """``displacement = float(half(x @ weight) + bias)``, typed as a half graph is."""
    half, float_ = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["moving"], ["x"], to=half),
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["displacement"], to=float_),
    ]
    shape = [1, 1, 4, 4, 4]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, float_, shape) for name in ("moving", "fixed")],
        [helper.make_tensor_value_info("displacement", float_, shape)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def test_emulation_rounds_what_numpy_rounds():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((3, 4, 4)).astype(np.float32)
    model = emulated(product_and_sum(weight.astype(np.float16), bias.astype(np.float16)))
    onnx.checker.check_model(model, full_check=True)
    moving = np.broadcast_to(x, (4, 4, 4)).copy()
    found, largest = GraphSession(model).run(moving, moving, ["displacement", LARGEST])

    def rounded(a: np.ndarray) -> np.ndarray:
        return a.astype(np.float16).astype(np.float32)

    product = rounded(rounded(x) @ rounded(weight))
    expected = rounded(product + rounded(bias))
    np.testing.assert_array_equal(found[0, 0, 0], expected)
    assert not np.array_equal(expected, x @ weight + bias)
    assert largest == max(np.abs(a).max() for a in (rounded(x), product, expected))


def test_emulation_of_attention_that_adds_up_in_half():
    """Piece by piece, as tensor cores do; and only where both factors were computed."""
    half, float_ = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["moving"], ["a"], to=half),
        helper.make_node("Cast", ["fixed"], ["b"], to=half),
        helper.make_node("MatMul", ["a", "b"], ["attended"]),
        helper.make_node("MatMul", ["attended", "weight"], ["projected"]),
        helper.make_node("Cast", ["projected"], ["displacement"], to=float_),
    ]
    n = 40  # two pieces and a half
    shape = [1, 1, 1, n, n]
    weight = np.eye(n, dtype=np.float16)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, float_, shape) for name in ("moving", "fixed")],
        [helper.make_tensor_value_info("displacement", float_, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    volumes = np.random.default_rng(4).random((2, 1, n, n), np.float32)
    a, b = (v[0].astype(np.float16).astype(np.float32) for v in volumes)
    expected = np.zeros((n, n), np.float32)
    for start in range(0, n, 16):
        piece = slice(start, start + 16)
        expected = (expected + a[:, piece] @ b[piece]).astype(np.float16).astype(np.float32)
    found = {
        in_half: GraphSession(emulated(model, in_half)).run(*volumes, ["displacement"])[0][0, 0, 0]
        for in_half in (True, False)
    }
    np.testing.assert_allclose(found[True], expected, atol=2e-3)  # one step of half at 8 to 16
    assert np.mean(found[True] == expected) > 0.98
    once = (a @ b).astype(np.float16).astype(np.float32)
    assert np.mean(found[False] == once) > 0.98
    assert np.mean(expected == once) < 0.9


def test_emulation_shows_what_half_cannot_hold():
    model = product_and_sum(np.full((4, 4), 200, np.float16), np.zeros((4, 4), np.float16))
    ones = np.full((4, 4, 4), 100, np.float32)
    found, largest = GraphSession(emulated(model)).run(ones, ones, ["displacement", LARGEST])
    assert np.isinf(found).all()  # 4 · 200 · 100 > 65504
    assert np.isinf(largest)


def test_weights_beyond_half_are_refused(two_passes):
    model = onnx.load(two_passes)
    (tensor,) = (t for t in model.graph.initializer if t.name.endswith("steps.0.conv1.conv.weight"))
    numbers = numpy_helper.to_array(tensor).copy()
    numbers[0] = 1e5
    tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
    with pytest.raises(ExportError, match=r"conv1\.conv\.weight: expected weights that fp16 can"):
        with_precision(model, "fp16")
    with_precision(model, "bf16")


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_half_graph_is_measured(calm, tmp_path, precision):
    onnx.save(with_precision(onnx.load(calm), precision), tmp_path / "half.onnx")
    measured = verify_half(tmp_path / "half.onnx", calm, SHAPE, precision, seed=3)
    low, high = {"fp16": (1e-5, 5e-3), "bf16": (1e-4, 4e-2)}[precision]
    assert low < measured["mean_difference_vox"] < high
    assert measured["p999_difference_vox"] <= measured["max_difference_vox"]
    assert [row["pair"] for row in measured["extreme"]] == [n for n, *_ in extreme_pairs(SHAPE)]
    assert 1 < measured["largest_in_half"] < 65504 / 4
    assert measured["largest_in_half"] == max(
        row["largest"] for row in (measured["random"], *measured["extreme"])
    )
    assert measured["pairs"] == []


def test_a_graph_of_other_weights_is_refused(two_passes, calm, tmp_path):
    onnx.save(with_precision(onnx.load(two_passes), "fp16"), tmp_path / "half.onnx")
    with pytest.raises(ExportError, match=r"half\.onnx: expected a displacement within 0\.01 voxe"):
        verify_half(tmp_path / "half.onnx", calm, SHAPE, "fp16", seed=3)


def test_a_graph_that_overflows_is_refused(calm, tmp_path):
    model = onnx.load(calm)
    # Two layers in a row whose numbers half can hold, but not their product with the features.
    for tensor in model.graph.initializer:
        if tensor.name in ("network.long_skips.full.weight", "network.long_skips.full.bias"):
            scaled = numpy_helper.to_array(tensor) * np.float32(1e5)
            assert np.abs(scaled).max() < 65504
            tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))
    onnx.save(model, tmp_path / NETWORK)
    onnx.save(with_precision(model, "fp16"), tmp_path / "half.onnx")
    with pytest.raises(ExportError, match=r"half\.onnx: expected finite displacements, got others"):
        verify_half(tmp_path / "half.onnx", tmp_path / NETWORK, SHAPE, "fp16", seed=3)


def test_export_writes_what_was_asked(bundle, weights, instant_trace, tmp_path, to_onnx, capsys):
    out = tmp_path / "b"
    options = ["--weights", str(weights), "--out-dir", str(out), "--precision", "bf16", "fp16"]
    assert to_onnx.main(options) == 0
    assert capsys.readouterr().out.count("displacement differs from") == 3
    loaded = load_bundle(out)
    assert {e.precision: e.file for e in loaded.networks} == {
        "fp32": "registration.onnx",
        "bf16": "registration.bf16.onnx",
        "fp16": "registration.fp16.onnx",
    }
    assert loaded.network("fp16").file == "registration.fp16.onnx"
    for entry in loaded.manifest["networks"]:
        assert loaded.verified_path(entry["file"]).exists()
        assert entry["verification"]["mean_difference_vox"] >= 0
    half = loaded.manifest["networks"][2]["verification"]
    assert half["reference"] == "registration.onnx"
    assert "rounding every weight" in half["runtime"]
    assert half["pairs"] == []  # and so says that no real ones were used


def test_several_shapes_share_a_bundle(weights, instant_trace, tmp_path, to_onnx, monkeypatch):
    monkeypatch.setattr(bundle_module, "verify", lambda path, network, shape: MEASURED)
    out = tmp_path / "b"
    options = ["--weights", str(weights), "--out-dir", str(out), "--precision", "fp32"]
    for shape in ("32 32 64", "32 32 32", "32 32 64"):
        options += ["--shape", *shape.split()]
    assert to_onnx.main(options) == 0
    loaded = load_bundle(out)
    assert loaded.inputs.grid.shape == (32, 32, 64)
    assert [(e.shape, e.file) for e in loaded.networks] == [
        ((32, 32, 64), "registration.onnx"),
        ((32, 32, 32), "registration.32x32x32.onnx"),
    ]
    assert loaded.network().file == "registration.onnx"


@pytest.fixture
def labelled(tmp_path) -> Path:
    """Two heads of different places, with labels."""
    folder = tmp_path / "labelled"
    folder.mkdir()
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    index = np.stack(np.meshgrid(*map(np.arange, (36, 40, 30)), indexing="ij"), -1)
    for name, shift in (("a", 0.0), ("b", 3.0)):
        points = (index - [17.5, 19.5, 14.5]) * [-2.0, -2.0, 2.0] + shift
        nib.save(nib.Nifti1Image(head(points), affine), folder / f"{name}_t1.nii.gz")
        labels = head_labels(points).astype(np.int16)
        nib.save(nib.Nifti1Image(labels, affine), folder / f"{name}_labels.nii.gz")
    return folder


def test_real_pairs_are_measured_and_recorded(
    weights, instant_trace, tmp_path, labelled, to_onnx, monkeypatch
):
    # A head of so few voxels changes by more when a handful of them do.
    monkeypatch.setattr(verify_module, "DICE_TOLERANCE", 0.01)
    out = tmp_path / "b"
    options = ["--weights", str(weights), "--out-dir", str(out), "--precision", "fp16"]
    assert to_onnx.main([*options, "--verify-on", str(labelled)]) == 0
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    measured = manifest["networks"][1]["verification"]
    assert [row["pair"] for row in measured["pairs"]] == ["a → b", "b → a"]
    for row in measured["pairs"]:
        assert 0 < row["dice"] < 1
        assert abs(row["dice_change"]) <= 0.01
        assert 0 < row["mean_difference_vox"] < 0.01


def test_a_change_of_dice_is_refused(
    weights, instant_trace, tmp_path, labelled, to_onnx, monkeypatch, capsys
):
    monkeypatch.setattr(verify_module, "DICE_TOLERANCE", -1.0)
    options = ["--weights", str(weights), "--out-dir", str(tmp_path / "b"), "--precision", "fp16"]
    assert to_onnx.main([*options, "--verify-on", str(labelled)]) == 1
    error = capsys.readouterr().err
    assert "registration.fp16.onnx: expected a displacement within 0.01 voxel" in error
    assert sum(line.startswith("to_onnx: ") for line in error.splitlines()) == 1
    assert error.splitlines()[-1].startswith("to_onnx: ")
    assert not (tmp_path / "b").exists()


def test_a_folder_without_pairs_is_one_sentence(
    weights, instant_trace, tmp_path, labelled, to_onnx, capsys
):
    for path in labelled.glob("b_*"):
        path.unlink()
    options = ["--weights", str(weights), "--out-dir", str(tmp_path / "b"), "--precision", "fp16"]
    assert to_onnx.main([*options, "--verify-on", str(labelled)]) == 1
    assert "expected at least two volumes with NAME_labels" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt-rtx-cu13, of the extra tensorrt-rtx",
)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_two_passes_become_an_engine(calm, tmp_path, monkeypatch, precision):
    """Which TensorRT for RTX compiles badly or not at all without `graph` and `stays_float`."""
    weights = write_weights(tmp_path / "weights.safetensors", passes=2)
    monkeypatch.setattr(bundle_module, "onnx_from_network", lambda *_: onnx.load(calm))
    monkeypatch.setattr(bundle_module, "verify", lambda *_: {})
    folder = tmp_path / "bundle"
    halves = {"fp32_for_gpus": True} if precision == "fp32" else {"halves": [precision]}
    bundle_module.write_bundle(folder, weights, bundle_module.Graphs(**halves))
    (entry,) = add_engines(folder, ["sm86"], "tensorrt-rtx", precision)
    kind = "gpu" if precision == "fp32" else precision
    assert entry["network"] == f"registration.{kind}.onnx"
    file = load_bundle(folder).verified_path(entry["network"])
    assert entry["weights_bytes"] < 1.2 * file.stat().st_size  # nothing else is baked in
    assert entry["device_memory_bytes"] < 100e6  # 276 MB with its own interpolation


def test_random_pairs_repeat_by_their_seed():
    shape = (32, 32, 64)
    np.testing.assert_array_equal(random_pair(shape, 5), random_pair(shape, 5))
    assert not np.array_equal(random_pair(shape, 5), random_pair(shape, 6))

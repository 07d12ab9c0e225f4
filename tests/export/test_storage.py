from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from paramorph.checkpoint import load_weights, save_weights
from paramorph_export import bundle as bundle_module
from paramorph_export.bundle import write_bundle
from paramorph_export.storage import FEWEST, WEIGHTS, stored_small, whole
from paramorph_export.trace import onnx_from_network
from paramorph_rt.bundle import load_bundle

from .conftest import NETWORK, SHAPE

RNG = np.random.default_rng(0)


def in_half(*shape: int) -> np.ndarray:
    """Numbers that float16 holds."""
    return RNG.normal(size=shape).astype(np.float16).astype(np.float32)


def graph_of(**constants: np.ndarray) -> onnx.ModelProto:
    """A graph that gives each constant as it reads it."""
    outputs = [f"{name}.out" for name in constants]
    kinds = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
    graph = helper.make_graph(
        [helper.make_node("Identity", [n], [o]) for n, o in zip(constants, outputs, strict=True)],
        "constants",
        [],
        [
            helper.make_tensor_value_info(o, kinds[v.dtype], v.shape)
            for o, v in zip(outputs, constants.values(), strict=True)
        ],
        [numpy_helper.from_array(v, name) for name, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def check_same(folder, model: onnx.ModelProto, **constants: np.ndarray) -> None:
    """The saved graph gives the constants, bit for bit; and so does the whole one made of it."""
    onnx.save(model, folder / "g.onnx")
    for graph in (folder / "g.onnx", whole(folder / "g.onnx").SerializeToString()):
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        for found, expected in zip(session.run(None, {}), constants.values(), strict=True):
            assert found.dtype == expected.dtype
            assert found.tobytes() == expected.tobytes()


def test_weights_are_pointed_to_whole_in_part_transposed_and_scaled(tmp_path):
    kernel, linear = in_half(8, 4, 3, 3, 3), in_half(96, 32)
    tensors = {"kernel": kernel, "linear": linear, "unused": in_half(50, 3)}
    halves = {name: torch.from_numpy(values).half() for name, values in tensors.items()}
    save_file(halves, tmp_path / WEIGHTS)
    scaled = np.concatenate([linear[:32] * np.float32(8**-0.5), linear[32:]])
    constants = {
        "kernel": kernel,
        "transposed": np.ascontiguousarray(linear.T),
        "part": np.ascontiguousarray(linear[32:].T),
        "scaled": np.ascontiguousarray(scaled.T),
        "query": linear[:32] * np.float32(8**-0.5),
    }
    small = stored_small(graph_of(**constants), tmp_path / WEIGHTS)
    check_same(tmp_path, small, **constants)
    kept = [c for c in small.graph.initializer if c.data_location != TensorProto.EXTERNAL]
    assert {c.name for c in kept} == {"scaled.scales", "query.scales"}


def test_constants_become_the_narrowest_type_that_holds_them(tmp_path):
    constants = {
        "mask": np.where(RNG.random((40, 40)) < 0.5, np.float32(0), np.float32(-100)),
        "minus_zero": np.full((20, 20), np.float32(-0.0)),
        "half": in_half(40, 40),
        "single": RNG.normal(size=(40, 40)).astype(np.float32),
        "too_large": np.full(FEWEST, np.float32(1e6)),
        "table": np.arange(5000),
        "far": np.arange(5000) * 10**6,
        "short": np.arange(FEWEST - 1),
    }
    small = stored_small(graph_of(**constants))
    check_same(tmp_path, small, **constants)
    types = {c.name: helper.tensor_dtype_to_np_dtype(c.data_type) for c in small.graph.initializer}
    assert types == {
        "mask.narrow": np.int8,
        "minus_zero.narrow": np.float16,
        "half.narrow": np.float16,
        "single": np.float32,
        "too_large": np.float32,
        "table.narrow": np.int16,
        "far": np.int64,
        "short": np.int64,
    }


def test_what_repeats_is_there_once(tmp_path):
    """Masks of windows, whose zeros are of both signs, and biases of pairs, which share places."""
    patterns = np.where(RNG.random((3, 1, 9, 9)) < 0.5, np.float32(-0.0), np.float32(-100))
    patterns[1] += np.float32(0)  # its zeros become positive
    of_pair = np.add.outer(np.arange(24), -np.arange(24)) + 23
    constants = {
        "mask": patterns[RNG.integers(0, 3, 40)],
        "bias": np.ascontiguousarray(in_half(4, 47)[:, of_pair]),
        "other_bias": np.ascontiguousarray(RNG.normal(size=(4, 47)).astype(np.float32)[:, of_pair]),
        "kernel": in_half(8, 4, 3, 3, 3),
    }
    small = stored_small(graph_of(**constants))
    check_same(tmp_path, small, **constants)
    shapes = {c.name: tuple(c.dims) for c in small.graph.initializer}
    places = [shapes.pop(name) for name in list(shapes) if name.startswith("places.")]
    assert sorted(places) == [(24, 24), (40,)]
    assert shapes == {
        "mask.once.narrow": (3, 1, 9, 9),
        "bias.once.narrow": (4, 47),
        "other_bias.once": (4, 47),
        "kernel.narrow": (8, 4, 3, 3, 3),
    }


def test_numbers_not_a_number_stay_what_they_are(tmp_path):
    strange = np.full(FEWEST, np.nan, np.float32)
    strange[0] = np.inf
    check_same(tmp_path, stored_small(graph_of(strange=strange)), strange=strange)


def check_holds_weights_once(bundle_folder, trained: int) -> None:
    bundle = load_bundle(bundle_folder)
    assert bundle.network().files == (NETWORK, WEIGHTS)
    small = onnx.load(bundle_folder / NETWORK, load_external_data=False)
    external = [c for c in small.graph.initializer if c.data_location == TensorProto.EXTERNAL]
    assert len(external) >= trained > 10
    read = sum(int(np.prod(c.dims)) for c in external)
    kept = sum(c.ByteSize() for c in small.graph.initializer if c not in external)
    assert kept < read  # tables and masks; in float32 the trained numbers alone would be 4 × read


def trained_in(weights) -> int:
    """Tensors that graphs hold as they were trained: not the tables of position biases."""
    state = load_weights(weights)[0].state_dict()
    return sum(t.ndim > 1 and t.numel() >= FEWEST and "table" not in n for n, t in state.items())


def test_bundle_holds_weights_in_float32_once(bundle, weights):
    check_holds_weights_once(bundle, trained_in(weights))
    assert (bundle / WEIGHTS).read_bytes() == weights.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_bundle_holds_narrow_weights_once(dtype, weights, tmp_path, monkeypatch):
    network, info = load_weights(weights)
    save_weights(tmp_path / "w.safetensors", network.state_dict(), info, dtype)
    network, info = load_weights(tmp_path / "w.safetensors")
    traced = onnx_from_network(network, SHAPE)
    monkeypatch.setattr(bundle_module, "onnx_from_network", lambda *_: traced)
    write_bundle(tmp_path / "bundle", tmp_path / "w.safetensors")
    check_holds_weights_once(tmp_path / "bundle", trained_in(weights))
    # With all constants in it, the graph is the one that was traced.
    expected = {c.name: numpy_helper.to_array(c) for c in traced.graph.initializer}
    for constant in whole(tmp_path / "bundle" / NETWORK).graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(constant), expected[constant.name])

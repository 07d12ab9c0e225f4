"""Constants of a graph without a number twice or a byte too many; loading gives the same bits.

Trained parameters stay in the bundle's file of weights, in float16 or int8, and the graph points
into it. What repeats, as masks and position biases of windows do, is there
once, with the places where it belongs. All becomes the narrowest type that holds it exactly.
`Cast`, and where needed `Gather`, `Transpose` and `Mul`, make of it what the graph reads; engines
fold these nodes when they load it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from paramorph.checkpoint import SCALE_SUFFIX

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float, Int, Shaped

#: Of the file of weights in a bundle, which all graphs of the bundle share.
WEIGHTS = "weights.safetensors"
#: Constants of fewer elements stay as they are: a node costs more than it saves.
FEWEST = 256
#: What stands for a type where it holds the same values, narrowest first.
_NARROWER = {
    np.dtype(np.float32): (np.int8, np.float16),
    np.dtype(np.int64): (np.int8, np.int16, np.int32),
}
_LENGTH_BYTES = 8  # at the start of a safetensors file: of its header
_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "I8": np.dtype("i1")}
_FOLDED = ("Cast", "Gather", "Transpose", "Mul")


def stored_small(model: onnx.ModelProto, weights: Path | None = None) -> onnx.ModelProto:
    """The graph with its larger constants as small as they can be without loss.

    Args:
        model: Stays as it is.
        weights: A safetensors file that will lie beside the graph; None keeps all in the graph.

    Returns:
        A graph that computes the same, to be saved in the folder of `weights`.
    """
    small = onnx.ModelProto()
    small.CopyFrom(model)
    trained = _trained(weights) if weights else []
    constants, nodes = [], []
    for constant in small.graph.initializer:
        values = numpy_helper.to_array(constant)
        stored = None
        if values.size >= FEWEST and values.dtype in _NARROWER:
            stored = (
                _from_weights(constant.name, values, trained)
                or _once(constant.name, values)
                or _narrow(constant.name, values)
            )
        more_constants, more_nodes = stored or ([constant], [])
        known = {c.name for c in constants}  # places that several share
        constants += [c for c in more_constants if c.name not in known]
        nodes += more_nodes
    nodes += small.graph.node
    for field, content in ((small.graph.initializer, constants), (small.graph.node, nodes)):
        del field[:]
        field.extend(content)
    return small


def whole(path: Path) -> onnx.ModelProto:
    """A graph of `stored_small` with its constants as they were, for what does not fold them."""
    model = onnx.load(path)  # and the parameters that it refers to
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type in _FOLDED and all(name in constants for name in node.input):
            constants[node.output[0]] = _computed(node, [constants[name] for name in node.input])
        else:
            nodes.append(node)
    read = {name for node in nodes for name in node.input} | {o.name for o in model.graph.output}
    still_read = [numpy_helper.from_array(v, name) for name, v in constants.items() if name in read]
    for field, content in ((model.graph.initializer, still_read), (model.graph.node, nodes)):
        del field[:]
        field.extend(content)
    return model


@dataclass(frozen=True)
class _Trained:
    """Rows of a tensor in a safetensors file."""

    file: str
    offset: int  # of the first row, bytes from the file's start
    rows: Shaped[np.ndarray, "n row"]  # in the type of the file
    scales: Float[np.ndarray, "n 1"] | None = None  # of integers

    @property
    def values(self) -> Float[np.ndarray, "n row"]:
        """What the rows stand for, in float32."""
        values = self.rows.astype(np.float32)
        return values if self.scales is None else values * self.scales

    def part(self, start: int, count: int) -> _Trained:
        offset = self.offset + start * self.rows[0].nbytes
        here = slice(start, start + count)
        scales = None if self.scales is None else self.scales[here]
        return replace(self, offset=offset, rows=self.rows[here], scales=scales)

    def constant(self, name: str, shape: Sequence[int]) -> TensorProto:
        """These rows as a constant of a graph."""
        constant = TensorProto(
            name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(self.rows.dtype)
        )
        constant.data_location = TensorProto.EXTERNAL
        where = {"location": self.file, "offset": self.offset, "length": self.rows.nbytes}
        for key, value in where.items():
            constant.external_data.add(key=key, value=str(value))
        return constant


def _trained(path: Path) -> list[_Trained]:
    """Every tensor of two or more axes.

    Source:
        The format at https://github.com/huggingface/safetensors: the length of a header, the header
        in JSON, and the bytes of all tensors, to which the header's offsets refer.
    """
    content = np.memmap(path, np.uint8, mode="r")
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES].tobytes(), "little")
    header = json.loads(content[_LENGTH_BYTES:start].tobytes())
    header.pop("__metadata__", None)

    def numbers(entry: dict) -> Shaped[np.ndarray, " n"]:
        first, end = (start + offset for offset in entry["data_offsets"])
        return np.frombuffer(content[first:end].tobytes(), _TYPES[entry["dtype"]])

    trained = []
    for name, entry in header.items():
        if entry["dtype"] not in _TYPES or len(entry["shape"]) < 2:
            continue
        rows = numbers(entry).reshape(entry["shape"][0], -1)
        scale = header.get(name + SCALE_SUFFIX)
        scales = numbers(scale)[:, np.newaxis] if scale else None
        trained.append(_Trained(path.name, start + entry["data_offsets"][0], rows, scales))
    return trained


def _from_weights(
    name: str, values: Shaped[np.ndarray, ...], trained: Sequence[_Trained]
) -> tuple[list[TensorProto], list[onnx.NodeProto]] | None:
    """A constant as rows of a trained tensor, which may be transposed and scaled; None if not."""
    if values.dtype != np.float32 or values.ndim < 2:
        return None
    for transposed in (False, True) if values.ndim == 2 else (False,):
        wanted = values.T if transposed else values.reshape(len(values), -1)
        for tensor in trained:
            match = _scaled_rows(wanted, tensor)
            if match is None:
                continue
            rows, scales = match
            shape = wanted.shape if transposed else values.shape
            constants = [rows.constant(f"{name}.trained", shape)]
            steps: list[tuple[str, list[str], dict]] = []
            if rows.rows.dtype != values.dtype:
                steps.append(("Cast", [], {"to": TensorProto.FLOAT}))
            for kind, factors in (("quantized", rows.scales), ("scales", scales)):
                if factors is not None and (factors != 1).any():
                    column = factors.reshape(-1, *[1] * (len(shape) - 1))
                    constants.append(numpy_helper.from_array(column, f"{name}.{kind}"))
                    steps.append(("Mul", [constants[-1].name], {}))
            if transposed:
                steps.append(("Transpose", [], {"perm": [1, 0]}))
            if not steps:
                constants[0].name = name
            return constants, list(_chain(constants[0].name, name, steps))
    return None


def _scaled_rows(
    wanted: Float[np.ndarray, "n row"], tensor: _Trained
) -> tuple[_Trained, Float[np.ndarray, " n"]] | None:
    """Where `wanted` lies among a tensor's rows, some perhaps times one number (as queries are)."""
    count, length = wanted.shape
    if tensor.rows.shape[1] != length or len(tensor.rows) < count:
        return None
    rows = tensor.values.astype(np.float64)
    lengths = np.maximum(np.linalg.norm(rows, axis=1), 1e-30)
    start = int(np.argmax(rows @ wanted[0] / lengths))  # of the rows in the direction of the first
    if start + count > len(rows):
        return None
    part = tensor.part(start, count)
    widened = part.values
    scales = np.ones(count, np.float32)
    others = np.flatnonzero((widened != wanted).any(axis=1))
    if len(others):
        squares = np.square(rows[start + others]).sum(1)
        products = (rows[start + others] * wanted[others]).sum(1)
        scales[others] = np.median(products / np.maximum(squares, 1e-30))
    return (part, scales) if _same_bits(widened * scales[:, None], wanted) else None


def _once(
    name: str, values: Shaped[np.ndarray, ...]
) -> tuple[list[TensorProto], list[onnx.NodeProto]] | None:
    """A constant that repeats, as its distinct rows or columns and their places; None if it is not.

    Rows are what the first axis counts, as windows of masks; columns what all others count, as
    pairs of slots in position biases.
    """
    if values.ndim < 3:
        return None
    flat = values.reshape(len(values), -1)
    for axis, vectors in enumerate((flat, flat.T)):
        first, places = _distinct(vectors)
        if 2 * len(first) > len(vectors):
            continue
        distinct = values[first] if axis == 0 else flat[:, first]
        places = places if axis == 0 else places.reshape(values.shape[1:])
        content = places.astype(np.int32)
        where = f"places.{hashlib.sha256(content.tobytes()).hexdigest()[:12]}"
        stored = f"{name}.once"
        constants, nodes = _narrow(stored, distinct) or (
            [numpy_helper.from_array(np.ascontiguousarray(distinct), stored)],
            [],
        )
        constants.append(numpy_helper.from_array(content, where))
        return constants, [*nodes, *_chain(stored, name, [("Gather", [where], {"axis": axis})])]
    return None


def _distinct(
    vectors: Shaped[np.ndarray, "n length"],
) -> tuple[Int[np.ndarray, " distinct"], Int[np.ndarray, " n"]]:
    """Where each vector occurs first, and which of those each of them is; bit by bit."""
    rows = np.ascontiguousarray(vectors)
    whole_rows = rows.view(np.dtype((np.void, rows[0].nbytes))).ravel()
    _, first, number = np.unique(whole_rows, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[number]


def _narrow(
    name: str, values: Shaped[np.ndarray, ...]
) -> tuple[list[TensorProto], list[onnx.NodeProto]] | None:
    """A constant in a narrower type; None if that would change a number."""
    for kind in _NARROWER[values.dtype]:
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = values.astype(kind)
        if _same_bits(narrow.astype(values.dtype), values):
            stored = numpy_helper.from_array(narrow, f"{name}.narrow")
            to = helper.np_dtype_to_tensor_dtype(values.dtype)
            return [stored], list(_chain(stored.name, name, [("Cast", [], {"to": to})]))
    return None


def _same_bits(a: Shaped[np.ndarray, ...], b: Shaped[np.ndarray, ...]) -> bool:
    return np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _chain(
    first: str, last: str, steps: Sequence[tuple[str, list[str], dict]]
) -> Iterator[onnx.NodeProto]:
    """Nodes one after another, from the value `first` to the value `last`."""
    read = first
    for number, (kind, others, attributes) in enumerate(steps, start=1):
        given = last if number == len(steps) else f"{last}.{number}.{kind.lower()}"
        yield helper.make_node(kind, [read, *others], [given], name=f"{given}/{kind}", **attributes)
        read = given


def _computed(
    node: onnx.NodeProto, inputs: Sequence[Shaped[np.ndarray, ...]]
) -> Shaped[np.ndarray, ...]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type == "Cast":
        return inputs[0].astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))
    if node.op_type == "Transpose":
        return np.ascontiguousarray(inputs[0].transpose(attributes["perm"]))
    if node.op_type == "Gather":
        return np.take(inputs[0], inputs[1], attributes.get("axis", 0))
    return inputs[0] * inputs[1]

"""Mixed precision: which operators of a graph compute in half, which stay in float32, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import onnx
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import ir

from paramorph_export.errors import ExportError
from paramorph_export.graph import REWRITES, rewrite_for_gpus
from paramorph_export.grid_sample import OP_TYPE as GRID_SAMPLE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from paramorph_export.rewrite import Rewrite

    Rule = Callable[[ir.Node, ir.DataType], bool]

#: What half is in each precision, and the first opset whose operators all know that type.
HALVES = {
    "fp16": (ir.DataType.FLOAT16, np.dtype(np.float16), 20),
    "bf16": (ir.DataType.BFLOAT16, np.dtype(ml_dtypes.bfloat16), 22),
}

#: Name of the additional output of `emulated`.
LARGEST = "largest_half"

#: Products that tensor cores of compute capability 8 add up at a time (mma.m16n8k16).
MMA_DEPTH = 16

_FLOAT = ir.DataType.FLOAT
_HALF_TYPES = tuple(dtype for dtype, *_ in HALVES.values())
_MOVING = ("Concat", "Gather", "Pad", "Reshape", "Slice", "Split", "Transpose")  # change no number
_ALWAYS_FLOAT = {("Resize", 2)}  # its scales, by the operator's definition


def stays_float(node: ir.Node, half: ir.DataType) -> bool:
    """Whether a node computes in float32 although its neighbours compute in half.

    LayerNormalization is none of them: by its own definition it computes mean and variance in
    float32 whatever its input is. Neither are Softmax, GELU and LeakyReLU: in float32 they leave
    the displacement as far from float32's as before (`benchmarks/results/settled/precision.md`).
    """
    match node.op_type:
        case op if op == GRID_SAMPLE:
            # A coordinate of 160 voxels has steps of 1/8 voxel in float16, of 1 in bfloat16.
            return True
        case "InstanceNormalization":
            # Its kernels sum in float32 whatever they read (TensorRT: INormalizationLayer's compute
            # precision). Half where its input is: TensorRT for RTX then writes no float32 copy.
            return node.inputs[0].dtype != half
        case "Conv":
            # Of the volumes themselves, one channel each: nothing for tensor cores, and TensorRT
            # for RTX would store a volume of zeros beside them (see `DepthwiseInPairs`).
            return node.inputs[1].shape[1] == 1
        case "Add":
            # The volumes and what one or two channels add to them cost nothing. In half, TensorRT
            # for RTX fails to compile two passes (ssa_validation), and takes more memory for one.
            # The statistics of a norm, a few for each channel, cost nothing either.
            shape = node.outputs[0].shape
            small = len(shape) == 5 and (shape[1] <= 2 or shape[2:] == (1, 1, 1))
            return small or _is_by_elements(node)
        case "ReduceMean" | "Sub" | "Div" | "Sqrt":
            return True  # of norms by their statistics
        case "Mul" | "ReduceSum" | "Gelu":
            return _is_by_elements(node)
        case "Gather" if node.inputs[0].is_initializer():
            return node.inputs[0].dtype != _FLOAT  # a table does not stay in float32
        case op if op in _MOVING:
            return all(value is None or value.dtype != half for value in node.inputs)
    return False


def _is_by_elements(node: ir.Node) -> bool:
    """Whether it belongs to a block by elements of `volumes`: nothing of it is ever stored."""
    if node.op_type in ("Mul", "ReduceSum"):
        return True
    before = "Add" if node.op_type == "Gelu" else "Mul"
    producers = [value.producer() for value in node.inputs]
    is_volume = len(node.outputs[0].shape) == 5
    return is_volume and any(p is not None and p.op_type == before for p in producers)


def with_precision(
    model: onnx.ModelProto,
    precision: str,
    rule: Rule = stays_float,
    rewrites: Sequence[type[Rewrite]] = REWRITES,
) -> onnx.ModelProto:
    """The graph in half where that is safe, rewritten for GPUs; strongly typed.

    Every change of type is a node, as TensorRT 11 and TensorRT for RTX want it. Inputs and outputs
    stay float32, and so does what the rule says and all that makes or composes a displacement,
    from the convolution on whose output it is: at 8 voxels, half has steps of 1/128 voxel.

    Args:
        model: In float32, from `onnx_from_network`; stays as it is.
        precision: fp32 (which is rewritten alone), fp16 or bf16.
        rule: Which nodes stay float32; called in the order of the graph, with the type of half.
        rewrites: For GPUs.

    Raises:
        ExportError: A weight beyond the range of half.
    """
    whole = ir.from_proto(model)
    rewrite_for_gpus(whole, rewrites)
    if precision == "fp32":
        return ir.to_proto(whole)
    dtype, _, opset = HALVES[precision]
    _choose_types(whole.graph, dtype, rule)
    converted: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in list(whole.graph):
        wanted = dtype if any(value.dtype == dtype for value in node.outputs) else _FLOAT
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in {_FLOAT, dtype} - {wanted}:
                continue
            if (node.op_type, index) in _ALWAYS_FLOAT:
                continue
            key = (value, wanted)
            if key not in converted:  # each once, however many nodes read it
                converted[key] = _converted(whole.graph, value, precision, wanted)
            node.replace_input_with(index, converted[key])
    RemoveUnusedNodesPass()(whole)
    for part in (whole, *whole.functions.values()):
        part.opset_imports[""] = opset
    return ir.to_proto(whole)


def emulated(model: onnx.ModelProto, attention_adds_in_half: bool = False) -> onnx.ModelProto:
    """A float32 graph that rounds wherever the half graph stores half, and only there.

    CPU runtimes compute most half operators in float32 and leave out the casts in between, so that
    a half graph looks better in them than it is. This one rounds every weight and the output of
    every operator. The kernels of a GPU may round less (where they are fused) or more (where they
    sum in half, which this cannot show).

    Args:
        model: From `with_precision`; stays as it is.
        attention_adds_in_half: Add up products of two computed tensors, which are those of
            attention, in half as well, `MMA_DEPTH` at a time. TensorRT for RTX's kernel does so for
            the values of all, and for the logits of some.

    Returns:
        With one more output, `LARGEST`: the largest absolute value that was stored in half.
    """
    whole = ir.from_proto(model)
    graph = whole.graph
    for value in graph.initializers.values():
        if value.dtype in _HALF_TYPES:
            value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32))
            value.dtype = _FLOAT
    attention = {
        node: node.outputs[0].dtype
        for node in graph
        if node.op_type == "MatMul" and not any(value.is_initializer() for value in node.inputs)
    }
    peaks = []
    for node in list(graph):
        for value in node.outputs:
            if value.dtype not in _HALF_TYPES:
                continue
            dtype, value.dtype = value.dtype, _FLOAT
            if node.op_type not in _MOVING:
                readers = list(value.uses())
                rounded = _cast(graph, _cast(graph, value, dtype), _FLOAT)
                for reader, index in readers:
                    reader.replace_input_with(index, rounded)
                peaks.append(_peak(graph, rounded))
        if node.op_type == "Cast" and node.attributes["to"].as_int() in _HALF_TYPES:
            node.attributes["to"] = ir.AttrInt64("to", _FLOAT)
    for node, dtype in attention.items() if attention_adds_in_half else ():
        if dtype in _HALF_TYPES:
            _add_in_half(graph, node, dtype)
    largest = ir.node("Max", peaks)
    largest.outputs[0].name, largest.outputs[0].type = LARGEST, ir.TensorType(_FLOAT)
    largest.outputs[0].shape = ir.Shape([])
    graph.append(largest)
    graph.outputs.append(largest.outputs[0])
    return ir.to_proto(whole)


def _choose_types(graph: ir.Graph, half: ir.DataType, rule: Rule) -> None:
    """Give the outputs of all nodes that compute in half that type."""
    in_float = _displacement_nodes(graph)
    for node in graph:
        if node not in in_float and not rule(node, half):
            for value in node.outputs:
                value.dtype = half


def _displacement_nodes(graph: ir.Graph) -> set[ir.Node]:
    """All that the outputs come from, back to the convolutions that predict displacements."""
    nodes: set[ir.Node] = set()
    values = list(graph.outputs)
    while values:
        node = values.pop().producer()
        if node is not None and node not in nodes:
            nodes.add(node)
            if node.op_type != "Conv":
                values += [value for value in node.inputs if value is not None]
    return nodes


def _converted(graph: ir.Graph, value: ir.Value, precision: str, wanted: ir.DataType) -> ir.Value:
    """The value in another type: an initializer converted, anything else cast."""
    if not value.is_initializer():
        return _cast(graph, value, wanted)
    name = f"{value.name}_{precision}"
    with np.errstate(over="ignore"):  # judged below
        values = value.const_value.numpy().astype(HALVES[precision][1])
    if not np.isfinite(values).all():
        raise ExportError(
            f"{value.name}: expected weights that {precision} can hold, got some beyond its range; "
            "export with another --precision."
        )
    made = ir.Value(
        name=name,
        shape=value.shape,
        type=ir.TensorType(wanted),
        const_value=ir.tensor(values, dtype=wanted, name=name),
    )
    graph.register_initializer(made)
    return made


def _add_in_half(graph: ir.Graph, node: ir.Node, dtype: ir.DataType) -> None:
    """A matrix product as a sum over pieces of its inner axis, rounded after each."""
    (a, b), total = node.inputs, None
    for start in range(0, a.shape[-1], MMA_DEPTH):
        pieces = []
        for value, axis in ((a, -1), (b, -2)):
            bounds = [
                _indices(graph, f"{node.name}_{start}_{axis}_{what}", number)
                for what, number in (("start", start), ("stop", start + MMA_DEPTH), ("axis", axis))
            ]
            piece = ir.node("Slice", [value, *bounds])
            graph.insert_before(node, piece)
            pieces.append(piece.outputs[0])
        added = ir.node("MatMul", pieces)
        graph.insert_before(node, added)
        if total is not None:
            added = ir.node("Add", [total, added.outputs[0]])
            graph.insert_before(node, added)
        half = ir.node("Cast", added.outputs, {"to": dtype})
        rounded = ir.node("Cast", half.outputs, {"to": _FLOAT})
        graph.insert_before(node, [half, rounded])
        total = rounded.outputs[0]
    for reader, index in list(node.outputs[0].uses()):
        reader.replace_input_with(index, total)
    graph.remove(node, safe=True)


def _indices(graph: ir.Graph, name: str, number: int) -> ir.Value:
    made = ir.Value(
        name=name,
        shape=ir.Shape([1]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.array([number]), name=name),
    )
    graph.register_initializer(made)
    return made


def _peak(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """Its largest absolute value."""
    absolute = ir.node("Abs", [value])
    largest = ir.node("ReduceMax", absolute.outputs, {"keepdims": 0})
    graph.insert_after(value.producer(), [absolute, largest])  # far behind, it would hold the value
    return largest.outputs[0]


def _cast(graph: ir.Graph, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A Cast of the value, right behind where it comes from."""
    node = ir.node("Cast", [value], {"to": dtype})
    made = node.outputs[0]
    made.name = f"{value.name}_{dtype.name.lower()}"
    made.shape, made.dtype = value.shape, dtype
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return made

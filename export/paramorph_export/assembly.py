"""Graphs put together from others, node by node, over grids of one field of view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    NameFixPass,
    ShapeInferencePass,
)
from onnxscript import ir, optimizer

from paramorph_export.grid_sample import (
    DOMAIN,
    DOMAIN_VERSION,
    OP_TYPE,
    STANDARD_OPSET,
    function_definition,
)
from paramorph_rt.bundle.names import CHANNELS, INPUTS, OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from paramorph_rt.geometry.spaces import Grid

    Shape = tuple[int, int, int]

_IR_VERSION = 10
_AXES = 3


class Assembly:
    """A registration network's graph in the making: two volumes → a displacement, and a warp by it.

    Args:
        shape: Of the volumes.

    Attributes:
        volumes: The moving and the fixed one, (1, 1, d, h, w).
    """

    def __init__(self, shape: Shape) -> None:
        self.volumes = [ir.Value(name=name) for name in INPUTS]
        for value in self.volumes:
            _lies(value, 1, shape)
        opsets = {"": STANDARD_OPSET, DOMAIN: DOMAIN_VERSION}
        self._graph = ir.Graph(self.volumes, [], nodes=[], name="refined", opset_imports=opsets)
        self._shapes = dict.fromkeys(self.volumes, shape)
        self._constants = 0

    def add(
        self, part: onnx.ModelProto, name: str, inputs: Mapping[str, ir.Value]
    ) -> list[ir.Value]:
        """The nodes and constants of another graph, which reads these values; its outputs."""
        copy = onnx.ModelProto()
        copy.CopyFrom(part)  # renaming an initializer renames it in what it was read from
        graph = ir.from_proto(copy).graph
        _unroll(graph)
        names, outputs = [value.name for value in graph.inputs], list(graph.outputs)
        for node in graph:
            for value in node.outputs:
                value.name = f"{name}.{value.name}"
            node.name = node.outputs[0].name
        for value, given in zip(graph.inputs, (inputs[n] for n in names), strict=True):
            value.replace_all_uses_with(given)
        for key, value in list(graph.initializers.items()):
            del graph.initializers[key]
            value.name = f"{name}.{key}"
            self._graph.register_initializer(value)
        graph.outputs.clear()
        nodes = list(graph)
        graph.remove(nodes)
        self._graph.extend(nodes)
        return outputs

    def rescaled(self, value: ir.Value, channels: int, target: Grid) -> ir.Value:
        """As `paramorph_rt.refinement.rescaling.rescaled`."""
        from paramorph_rt.refinement.rescaling import matrix

        shape = self._shapes[value]
        if shape == target.shape:
            return value
        d, h, w = (matrix(*sizes) for sizes in zip(shape, target.shape, strict=True))
        result = self._op("MatMul", value, self._constant(w.T))
        result = self._op("MatMul", self._constant(h), result)
        flat = self._constant([1, channels, shape[0], target.shape[1] * target.shape[2]])
        result = self._op("MatMul", self._constant(d), self._op("Reshape", result, flat))
        whole = self._constant([1, channels, *target.shape])
        return self._lying(self._op("Reshape", result, whole), channels, target)

    def in_voxels_of(self, displacement: ir.Value, grid: Grid, target: Grid) -> ir.Value:
        """A displacement in voxels of one grid, in those of another of the same field of view."""
        if grid.shape == target.shape:
            return displacement
        self._lying(displacement, _AXES, grid)
        growth = np.divide(target.shape, grid.shape).astype(np.float32)
        column = self._constant(growth.reshape(1, _AXES, 1, 1, 1))
        return self._op("Mul", self.rescaled(displacement, _AXES, target), column)

    def halves(self, both: ir.Value, channels: int, grid: Grid) -> list[ir.Value]:
        """The features of the moving and of the fixed image."""
        node = ir.node("Split", [both], {"axis": 0, "num_outputs": 2}, num_outputs=2)
        self._graph.append(node)
        return [self._lying(value, channels, grid) for value in node.outputs]

    def zeros(self, grid: Grid) -> ir.Value:
        """No displacement."""
        zero = self._constant(np.zeros((1, 1, 1, 1, 1), np.float32))
        return self._op("Expand", zero, self._constant([1, _AXES, *grid.shape]))

    def model(self, displacement: ir.Value) -> onnx.ModelProto:
        """The whole graph."""
        moving = self.volumes[0]
        shape = self._shapes[moving]
        results = [self._op("Identity", displacement)]
        node = ir.node(OP_TYPE, [moving, results[0]], domain=DOMAIN)
        self._graph.append(node)
        results.append(node.outputs[0])
        for value, name in zip(results, OUTPUTS, strict=True):
            _lies(value, CHANNELS[name], shape)
            value.name = name
            self._graph.outputs.append(value)
        model = ir.Model(self._graph, ir_version=_IR_VERSION)
        optimizer.optimize_ir(model)  # folds sizes and paddings, which are known here
        definition = ir.from_proto(function_definition())
        model.functions[definition.identifier()] = definition
        CommonSubexpressionEliminationPass()(model)
        NameFixPass()(model)
        ShapeInferencePass()(model)
        return ir.to_proto(model)

    def _op(self, op_type: str, *inputs: ir.Value) -> ir.Value:
        node = ir.node(op_type, inputs)
        self._graph.append(node)
        return node.outputs[0]

    def _constant(self, values: Any) -> ir.Value:
        array = np.ascontiguousarray(values)
        self._constants += 1
        name = f"constant_{self._constants}"
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.tensor(array).dtype)
        self._graph.register_initializer(value)
        return value

    def _lying(self, value: ir.Value, channels: int, grid: Grid) -> ir.Value:
        """A value, noted as lying on a grid."""
        self._shapes[value] = grid.shape
        _lies(value, channels, grid.shape)
        return value


def _unroll(graph: ir.Graph) -> None:
    """Put what loops of a known length do in their place, one iteration after another.

    What jumps back, no engine captures into a CUDA graph.
    """
    for loop in [node for node in graph if node.op_type == "Loop"]:
        count, going, carried = loop.inputs
        for number in range(int(count.const_value.numpy())):
            body = loop.attributes["body"].value.clone(allow_outer_scope_values=True)
            body.inputs[1].replace_all_uses_with(going)
            body.inputs[2].replace_all_uses_with(carried)
            carried, nodes = body.outputs[1], list(body)
            body.outputs.clear()
            body.remove(nodes)
            for value in (value for node in nodes for value in node.outputs):
                value.name = f"{value.name}.{number}"
            graph.insert_before(loop, nodes)
        loop.outputs[0].replace_all_uses_with(carried, replace_graph_outputs=True)
        graph.remove(loop, safe=True)


def _lies(value: ir.Value, channels: int, shape: Shape) -> None:
    value.type = ir.TensorType(ir.DataType.FLOAT)
    value.shape = ir.Shape([1, channels, *shape])

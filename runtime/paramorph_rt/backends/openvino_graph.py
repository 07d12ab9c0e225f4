"""A bundle's graph as OpenVINO compiles it, which can sample images but not volumes.

Its GridSample3D nodes become elementary operators. In float32 the graph stays one part; in other
precisions it is cut there, so that each warp is a part that stays in float32: bfloat16 would round
the coordinates.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .openvino_package import (
    ConstantFolding,
    ConversionExtension,
    FrontEndManager,
    Manager,
    Op,
    ops,
    ov,
)

if TYPE_CHECKING:
    from pathlib import Path

SAMPLING = {"interpolation": "linear", "padding": "border", "align_corners": 1}


# In float32 64 MB. Larger ones would cost a wide network more memory than bfloat16 saves it.
MOST_IN_FLOAT = 16_000_000


@dataclass(frozen=True)
class Part:
    """A model whose inputs other parts compute, or the caller gives.

    Attributes:
        model: Its inputs and outputs are in the order of the names below.
        inputs: Names of the values that it reads.
        outputs: Names of the values that it computes.
        in_float: Whether it computes in float32 whatever the network's precision.
    """

    model: ov.Model
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_float: bool = False


def parts_from_onnx(path: Path, output: str, mixed: bool = False) -> tuple[list[Part], str]:
    """Read a graph, and cut it into parts if they have different precisions.

    Args:
        path: ONNX file.
        output: What to compute; whatever it does not depend on is left out.
        mixed: Leave what a rounded network strays most by in float32: warps, and features at half
            resolution, unless there are more than `MOST_IN_FLOAT` elements in one.

    Returns:
        The parts in the order to run them, whose first inputs go by their names in the file; and
        the name that `output` has among the parts' values.

    Raises:
        Exception: OpenVINO cannot read the graph (its errors have no other base).
        RuntimeError: A warp inside the network by other rules than `SAMPLING`.
    """
    frontend = FrontEndManager().load_by_framework("onnx")
    frontend.add_extension(ConversionExtension("GridSample3D", "paramorph", _GridSample3D.of_node))
    whole = frontend.convert(frontend.load(str(path)))
    model = ov.Model([whole.output(output)], whole.get_parameters())
    # Constants that are stored narrow; and what computes shapes, all of them static, which would
    # only travel from part to part.
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    if not mixed:
        return [_whole(model, output)], output
    return _cut(model, _slice_in_float(model))


def _whole(model: ov.Model, output: str) -> Part:
    """The graph in one part, all in float32 if anything is warped: warps share its memory."""
    warps = [node for node in model.get_ordered_ops() if isinstance(node, _GridSample3D)]
    for node in warps:
        warped = node.warped().output(0)
        for port in node.output(0).get_target_inputs():
            port.replace_source_output(warped)
    inputs = tuple(node.get_friendly_name() for node in model.get_parameters())
    return Part(model, inputs, (output,), in_float=bool(warps))


def _slice_in_float(model: ov.Model) -> tuple[int, int] | None:
    """Height and width of the features at half resolution, unless they are too many."""
    half = [n // 2 for n in model.inputs[0].get_shape()[2:]]
    shapes = [list(node.output(0).get_shape()) for node in model.get_ops() if node.inputs()]
    most = max((int(np.prod(shape)) for shape in shapes if shape[2:] == half), default=0)
    return (half[1], half[2]) if most <= MOST_IN_FLOAT else None


def warp_model(shape: tuple[int, ...]) -> ov.Model:
    """``warped(p) = volume(p + displacement(p))``: trilinear, outside the volume its border.

    Args:
        shape: Of the volume, (1, c, d, h, w); the displacement is (1, 3, d, h, w), in voxels.
    """
    volume = ops.parameter(list(shape), np.float32)
    displacement = ops.parameter([1, 3, *shape[2:]], np.float32)
    return ov.Model([_warped(volume, displacement, shape)], [volume, displacement])


def _warped(volume: Any, displacement: Any, shape: tuple[int, ...]) -> ov.Node:
    size = shape[2:]
    corner = _int(0, np.int32)  # index, in the flat volume, of the voxel before the sampled point
    fractions = []  # how far beyond it the point lies along each axis, 0 to 1
    for axis, component in enumerate(ops.split(displacement, _int(1), 3).outputs()):
        n = size[axis]
        index = np.arange(n).reshape([n if axis == other else 1 for other in range(-2, 3)])
        at = ops.clamp(ops.add(component, _float(index)), 0.0, n - 1.0)
        before = ops.minimum(ops.floor(at), _float(n - 2))
        fractions.append(ops.subtract(at, before))
        corner = ops.add(ops.multiply(corner, _int(n, np.int32)), ops.convert(before, "i32"))
    corner = ops.reshape(corner, _int([-1]), False)
    flat = ops.reshape(volume, _int([shape[1], -1]), False)
    steps = zip((size[1] * size[2], size[2], 1), fractions, strict=True)
    return ops.reshape(_interpolated(flat, corner, list(steps)), _int(shape), False)


def _interpolated(flat: ov.Node, corner: ov.Node, steps: list[tuple[int, ov.Node]]) -> ov.Node:
    """Values (c, voxels) between the corner and one step further along each axis.

    Args:
        flat: Volume (c, voxels).
        corner: Index of the first voxel to interpolate from.
        steps: Of each axis, to the next voxel's index, and how much of that voxel to take.
    """
    if not steps:
        return ops.gather(flat, corner, _int(1))
    (step, fraction), *others = steps
    before = _interpolated(flat, corner, others)
    after = _interpolated(flat, ops.add(corner, _int(step, np.int32)), others)
    weight = ops.reshape(fraction, _int([1, -1]), False)
    return ops.add(before, ops.multiply(ops.subtract(after, before), weight))


class _GridSample3D(Op):
    """Marks in a graph where it warps; never compiled."""

    def __init__(self, inputs: list[ov.Output], sampling: dict[str, Any]) -> None:
        super().__init__(self)
        self.sampling = sampling
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    @classmethod
    def of_node(cls, node: Any) -> list[ov.Output]:
        """What the frontend makes of the ONNX node."""
        sampling = {name: node.get_attribute(name, usual) for name, usual in SAMPLING.items()}
        return cls([node.get_input(0), node.get_input(1)], sampling).outputs()

    def validate_and_infer_types(self) -> None:
        """Like the volume."""
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def warped(self) -> ov.Node:
        """The warp that this stands for."""
        volume, displacement = self._sources()
        return _warped(volume, displacement, self._shape())

    def part(self) -> Part:
        """The warp that this stands for, as a part by itself."""
        names = tuple(map(_name, self._sources()))
        return Part(warp_model(self._shape()), names, (_name(self.output(0)),), in_float=True)

    def _sources(self) -> list[ov.Output]:
        return [port.get_source_output() for port in self.inputs()]

    def _shape(self) -> tuple[int, ...]:
        """Of the volume, if it is warped by the rules."""
        volume, displacement = self._sources()
        shape = tuple(volume.get_shape())
        if self.sampling != SAMPLING or tuple(displacement.get_shape()) != (1, 3, *shape[2:]):
            rules = ", ".join(f"{name} {value}" for name, value in self.sampling.items())
            raise RuntimeError(f"a warp with {rules} inside the network")
        return shape


def _cut(  # one pass over the nodes fills four tables that only make sense together
    model: ov.Model, in_float: tuple[int, int] | None
) -> tuple[list[Part], str]:
    """The warps and what lies between them; and the name of the model's only output.

    A node's stage is above those of all warps before it, and odd where slices of features have the
    size `in_float` (h, w). All nodes of a stage make one part, which reads what it needs of earlier
    ones.
    """
    stages: dict[str, int] = {}
    read: dict[int, dict[str, ov.Node]] = defaultdict(dict)  # stage → name → parameter
    given: dict[int, dict[str, ov.Output]] = defaultdict(dict)  # stage → name → what others read
    warps: dict[int, list[Part]] = defaultdict(list)
    read[0] = {_name(node.output(0)): node for node in model.get_parameters()}
    (result,) = model.get_results()
    output = _name(result.input(0).get_source_output())

    def stage_after(source: ov.Output) -> int:
        node = source.get_node()
        return stages[node.get_name()] + isinstance(node, _GridSample3D)

    def is_odd(node: ov.Node) -> bool:
        shape = tuple(node.output(0).get_shape())
        return bool(node.inputs()) and len(shape) == 5 and shape[3:] == in_float

    for node in model.get_ordered_ops():
        sources = [port.get_source_output() for port in node.inputs()]
        stage = max(map(stage_after, sources), default=0)
        is_warp, is_result = isinstance(node, _GridSample3D), node.get_type_name() == "Result"
        if not (is_warp or is_result) and is_odd(node) != stage % 2:
            stage += 1
        stages[node.get_name()] = stage
        if is_warp:
            warps[stage].append(node.part())
        for port, source in zip(node.inputs(), sources, strict=True):
            origin, name = source.get_node(), _name(source)
            kind, earlier = origin.get_type_name(), stages[origin.get_name()]
            if not (is_warp or is_result):
                if kind == "Constant" or earlier == stage:
                    continue
                if name not in read[stage]:
                    read[stage][name] = ops.parameter(source.get_shape(), source.get_element_type())
                port.replace_source_output(read[stage][name].output(0))
            if kind != "Parameter" and not isinstance(origin, _GridSample3D):
                given[earlier][name] = source
    parts = []
    for stage in sorted(given | warps):
        if given[stage]:
            inner = ov.Model(list(given[stage].values()), list(read[stage].values()))
            names = tuple(read[stage]), tuple(given[stage])
            parts.append(Part(inner, *names, in_float=bool(stage % 2)))
        parts += warps[stage]
    return parts, output


def _name(source: ov.Output) -> str:
    """One of its own for every output in a model; of a parameter, that in the ONNX file."""
    node = source.get_node()
    if node.get_type_name() == "Parameter":
        return node.get_friendly_name()
    return f"{node.get_name()}:{source.get_index()}"


def _float(value: Any) -> ov.Node:
    return ops.constant(np.asarray(value, np.float32))


def _int(value: Any, kind: type = np.int64) -> ov.Node:
    return ops.constant(np.asarray(value, kind))

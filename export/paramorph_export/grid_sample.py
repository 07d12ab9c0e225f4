"""The ONNX form of `paramorph::grid_sample_3d`: node `GridSample3D` of the domain `paramorph`.

The node's definition travels in the file as a model-local function of standard operators, so any
runtime that knows opset 20 executes it; one that has a plugin of this name can claim the node.
"""

from __future__ import annotations

from typing import Any

import onnx
import torch
from onnx import defs, parser
from onnxscript import values

# Importing it registers the operator that this module translates.
from paramorph.warp import grid_sample_3d as grid_sample_3d

DOMAIN = "paramorph"
DOMAIN_VERSION = 1
OP_TYPE = "GridSample3D"
STANDARD_OPSET = 20  # the first with a volumetric GridSample

_TENSOR = ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")
_COORDINATES = ("U", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")

#: What the exporter has to know of a node that no ONNX domain defines.
SCHEMA = defs.OpSchema(
    OP_TYPE,
    DOMAIN,
    DOMAIN_VERSION,
    inputs=[
        defs.OpSchema.FormalParameter("volume", "T"),  # (b, c, d, h, w)
        defs.OpSchema.FormalParameter("displacement", "U"),  # (b, 3, d, h, w), voxels
    ],
    outputs=[defs.OpSchema.FormalParameter("warped", "T")],  # (b, c, d, h, w)
    type_constraints=[_TENSOR, _COORDINATES],
    attributes=[
        defs.OpSchema.Attribute("interpolation", defs.OpSchema.AttrType.STRING, required=False),
        defs.OpSchema.Attribute("padding", defs.OpSchema.AttrType.STRING, required=False),
        defs.OpSchema.Attribute("align_corners", defs.OpSchema.AttrType.INT, required=False),
    ],
)

_NODE = values.Op(values.Opset(DOMAIN, DOMAIN_VERSION), OP_TYPE, SCHEMA)


def _position(axis: int, name: str) -> str:
    """Where along one axis each voxel is sampled, in voxels: (b, 1, d, h, w)."""
    others = ", ".join(str(other) for other in range(5) if other != axis)
    return f"""
        {name}_size = Shape <start: int = {axis}, end: int = {axis + 1}> (displacement)
        {name}_count = Squeeze ({name}_size)
        {name}_end = Cast <to: int = 1> ({name}_count)
        {name}_range = Range (zero, {name}_end, one)
        {name}_others = Constant <value = int64[4] {{{others}}}> ()
        {name}_voxels = Unsqueeze ({name}_range, {name}_others)
        {name} = Add ({name}_displacement, {name}_voxels)"""


_DEFINITION = f"""
<domain: "{DOMAIN}", opset_import: ["" : {STANDARD_OPSET}]>
{OP_TYPE} <interpolation: string = "linear", padding: string = "border", align_corners: int = 1>
    (volume, displacement) => (warped)
    {{
        zero = Constant <value = float {{0.0}}> ()
        one = Constant <value = float {{1.0}}> ()
        two = Constant <value = float {{2.0}}> ()
        reversed = Constant <value = int64[3] {{2, 1, 0}}> ()
        u = Cast <to: int = 1> (displacement)
        d_displacement, h_displacement, w_displacement =
            Split <axis: int = 1, num_outputs: int = 3> (u)
{_position(2, "d")}{_position(3, "h")}{_position(4, "w")}
        channels = Concat <axis: int = 1> (w, h, d)
        at = Transpose <perm: ints = [0, 2, 3, 4, 1]> (channels)
        size = Shape <start: int = 2, end: int = 5> (volume)
        size_whd = Gather (size, reversed)
        voxels = Cast <to: int = 1> (size_whd)
        last = Sub (voxels, one)
        scale = Div (two, last)
        scaled = Mul (at, scale)
        grid = Sub (scaled, one)
        volume_float = Cast <to: int = 1> (volume)
        sampled = GridSample <
            mode: string = @interpolation, padding_mode: string = @padding,
            align_corners: int = @align_corners> (volume_float, grid)
        warped = CastLike (sampled, volume)
    }}
"""


def function_definition() -> onnx.FunctionProto:
    """The model-local function: coordinates in float32, then a standard 5-D GridSample."""
    return parser.parse_function(_DEFINITION)


def _translate(
    volume: Any,
    displacement: Any,
    interpolation: str = "linear",
    padding: str = "border",
    align_corners: bool = True,
) -> Any:
    return _NODE(
        volume,
        displacement,
        interpolation=interpolation,
        padding=padding,
        align_corners=int(align_corners),
    )


#: For `torch.onnx.export(custom_translation_table=…)`.
TRANSLATION_TABLE = {torch.ops.paramorph.grid_sample_3d.default: _translate}

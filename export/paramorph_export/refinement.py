"""The refinement of a pair as an ONNX graph of standard operators, with no weights in it.

One run takes all steps of one level, whatever its size: the same arithmetic as the compiled passes
of `paramorph_rt.refinement`, for engines and machines that have none. It is small, is a part of the
runtime, and goes into every bundle, so that whoever runs a bundle's network can refine its field.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import checker, numpy_helper, parser

from paramorph_export.grid_sample import DOMAIN, DOMAIN_VERSION, STANDARD_OPSET, function_definition
from paramorph_rt.refinement.forces import LEAST_FORCE, LEAST_PRODUCT, LEAST_VARIANCE, RADIUS
from paramorph_rt.refinement.graph import FILES, numbers_of

if TYPE_CHECKING:
    from paramorph_rt.refinement.settings import Level

_IR_VERSION = 10
_AXES = {"d": 2, "h": 3, "w": 4}


def refinement_graph(features: bool) -> onnx.ModelProto:
    """The steps of one level.

    Inputs: `moving` and `fixed` (1, 1, d, h, w) in [0, 1]; with `features` also `moving_features`
    and `fixed_features` (1, c, d, h, w) and `feature_weight`; `counts` (1, 1, d, h, w), the weight
    of each voxel's force; `displacement` (1, 3, d, h, w) in voxels, where it starts; `iterations`;
    `step`, the length of a step's longest vector; `relative` (3), the voxels' size along each axis,
    both in the level's spacing; the taps of six Gaussian kernels, `force_taps_d` … `field_taps_w`.

    Output: `refined` (1, 3, d, h, w) in voxels.
    """
    model = parser.parse_model(_text(features))
    model.functions.append(function_definition())
    checker.check_model(model, full_check=True)
    return model


def level_graph(
    level: Level,
    spacing_mm: tuple[float, float, float],
    shape: tuple[int, int, int],
    channels: int | None = None,
    counts: bool = True,
) -> onnx.ModelProto:
    """The graph of one level on one grid, which reads images and fields alone.

    It computes the same, and TensorRT builds it: which takes no kernel that comes as an input, and
    lays out memory for one size.

    Args:
        level: Of a refinement.
        spacing_mm: Of the grid's voxels.
        shape: Of the grid (d, h, w).
        channels: Of the features; None refines by intensities alone.
        counts: Read the weight of each voxel's force; otherwise all count.
    """
    model = refinement_graph(channels is not None)
    numbers = numbers_of(level, spacing_mm, channels is not None)
    if not counts:
        numbers["counts"] = np.ones((1, 1, 1, 1, 1), np.float32)
    graph = model.graph
    for value in [value for value in graph.input if value.name in numbers]:
        graph.input.remove(value)
        graph.initializer.append(numpy_helper.from_array(numbers[value.name], value.name))
    sizes = dict(zip(_AXES, shape, strict=True)) | {"c": channels}
    for value in (*graph.input, *graph.output):
        for side in value.type.tensor_type.shape.dim:
            if side.dim_param:
                side.dim_value = sizes[side.dim_param]
    checker.check_model(model, full_check=True)
    return model


#: Files of a bundle, and of the runtime itself, and what makes each.
REFINEMENT_GRAPHS = {
    FILES[features]: partial(refinement_graph, features) for features in (False, True)
}


def _text(features: bool) -> str:  # one graph, node by node
    volume, field = "float[1, 1, d, h, w]", "float[1, 3, d, h, w]"
    channels = "float[1, c, d, h, w]"
    inputs = [f"{volume} moving", f"{volume} fixed"]
    if features:
        inputs += [f"{channels} moving_features", f"{channels} fixed_features"]
        inputs += ["float feature_weight"]
    inputs += [f"{volume} counts", f"{field} displacement", "int64 iterations", "float step"]
    inputs += ["float[3] relative"]
    inputs += [f"float[{what}_{a}] {what}_taps_{a}" for what in ("force", "field") for a in _AXES]
    return f"""
<ir_version: {_IR_VERSION}, opset_import: ["" : {STANDARD_OPSET}, "{DOMAIN}" : {DOMAIN_VERSION}]>
refinement ({", ".join(inputs)}) => ({field} refined)
{{
    {_CONSTANTS}
    relative_column = Reshape (relative, column)
    relative_square = Mul (relative_column, relative_column)
    slopes = Div (half, relative_square)
    {_box_mean("fixed", "fixed_mean")}
    fixed_fixed = Mul (fixed, fixed)
    {_box_mean("fixed_fixed", "fixed_square")}
    {_variance("fixed")}
    refined = Loop (iterations, true, displacement) <body = iteration
        (int64 number, bool going, {field} before) => (bool goes_on, {field} after)
        {{
            goes_on = Identity (going)
            {_correlation_force()}
            {_difference_force() if features else "force = Identity (correlation_force)"}
            counting = Mul (force, counts)
            {_smoothed("counting", "force", "direction")}
            square = Mul (direction, direction)
            in_spacings = Mul (square, relative_square)
            lengths = ReduceSum (in_spacings, channel_axis)
            most = ReduceMax <keepdims: int = 0> (lengths)
            longest = Sqrt (most)
            at_least = Max (longest, least_force)
            scale = Div (step, at_least)
            moved = Mul (direction, scale)
            carried = {DOMAIN}.GridSample3D (before, moved)
            composed = Add (carried, moved)
            {_smoothed("composed", "field", "after")}
        }}>
}}"""


def _ints(values: list[int]) -> str:
    return f"int64[{len(values)}] {{{', '.join(map(str, values))}}}"


_COUNT = 2 * RADIUS + 1
_CONSTANTS = f"""
    true = Constant <value = bool {{1}}> ()
    half = Constant <value = float {{0.5}}> ()
    zero_int = Constant <value = {_ints([0])}> ()
    two_int = Constant <value = {_ints([2])}> ()
    minus_two = Constant <value = {_ints([-2])}> ()
    end = Constant <value = {_ints([2**62])}> ()
    channel_axis = Constant <value = {_ints([1])}> ()
    column = Constant <value = {_ints([1, 3, 1, 1, 1])}> ()
    no_pad = Constant <value = {_ints([0, 0])}> ()
    least_force = Constant <value = float {{{LEAST_FORCE}}}> ()
    least_product = Constant <value = float {{{LEAST_PRODUCT}}}> ()
    least_variance = Constant <value = float {{{LEAST_VARIANCE}}}> ()
    no_variance = Constant <value = float {{0.0}}> ()
    box_pads = Constant <value = {_ints([0, 0, *[RADIUS] * 3, 0, 0, *[RADIUS] * 3])}> ()
    axis_d = Constant <value = {_ints([2])}> ()
    axis_h = Constant <value = {_ints([3])}> ()
    axis_w = Constant <value = {_ints([4])}> ()
    pads_d = Constant <value = {_ints([0, 0, 1, 0, 0, 0, 0, 1, 0, 0])}> ()
    pads_h = Constant <value = {_ints([0, 0, 0, 1, 0, 0, 0, 0, 1, 0])}> ()
    pads_w = Constant <value = {_ints([0, 0, 0, 0, 1, 0, 0, 0, 0, 1])}> ()
    taps_d = Constant <value = {_ints([1, 1, -1, 1, 1])}> ()
    taps_h = Constant <value = {_ints([1, 1, 1, -1, 1])}> ()
    taps_w = Constant <value = {_ints([1, 1, 1, 1, -1])}> ()
"""


def _box_mean(volume: str, mean: str) -> str:
    return f"""
    {mean}_padded = Pad <mode: string = "edge"> ({volume}, box_pads)
    {mean} = AveragePool <kernel_shape: ints = [{_COUNT}, {_COUNT}, {_COUNT}]> ({mean}_padded)"""


def _variance(of: str) -> str:
    return f"""
    {of}_mean_mean = Mul ({of}_mean, {of}_mean)
    {of}_spread = Sub ({of}_square, {of}_mean_mean)
    {of}_variance = Max ({of}_spread, no_variance)"""


def _gradient(of: str) -> str:
    """Differences of neighbours along each axis, twice the central ones, as channels."""
    lines = [
        f"""
    {of}_beyond_{a} = Pad <mode: string = "edge"> ({of}, pads_{a})
    {of}_after_{a} = Slice ({of}_beyond_{a}, two_int, end, axis_{a})
    {of}_before_{a} = Slice ({of}_beyond_{a}, zero_int, minus_two, axis_{a})
    {of}_slope_{a} = Sub ({of}_after_{a}, {of}_before_{a})"""
        for a in _AXES
    ]
    return "".join(lines)


def _correlation_force() -> str:
    slopes = ", ".join(f"warped_slope_{a}" for a in _AXES)
    return f"""
    warped = {DOMAIN}.GridSample3D (moving, before)
    {_box_mean("warped", "warped_mean")}
    warped_warped = Mul (warped, warped)
    {_box_mean("warped_warped", "warped_square")}
    {_variance("warped")}
    warped_fixed = Mul (warped, fixed)
    {_box_mean("warped_fixed", "product_mean")}
    mean_product = Mul (warped_mean, fixed_mean)
    covariance = Sub (product_mean, mean_product)
    variances = Mul (warped_variance, fixed_variance)
    variances_least = Add (variances, least_product)
    slope = Div (covariance, variances_least)
    variance_least = Add (warped_variance, least_variance)
    covariance_least = Add (covariance, least_variance)
    fit = Div (covariance_least, variance_least)
    fixed_centred = Sub (fixed, fixed_mean)
    warped_centred = Sub (warped, warped_mean)
    fitted = Mul (fit, warped_centred)
    remaining = Sub (fixed_centred, fitted)
    by_intensity = Mul (slope, remaining)
    {_gradient("warped")}
    warped_gradient = Concat <axis: int = 1> ({slopes})
    warped_steps = Mul (warped_gradient, slopes)
    correlation_force = Mul (by_intensity, warped_steps)"""


def _difference_force() -> str:
    lines = [
        f"""
    pulled_{a} = Mul (difference, warped_features_slope_{a})
    pull_{a} = ReduceSum (pulled_{a}, channel_axis)"""
        for a in _AXES
    ]
    return f"""
    warped_features = {DOMAIN}.GridSample3D (moving_features, before)
    difference = Sub (fixed_features, warped_features)
    {_gradient("warped_features")}{"".join(lines)}
    pull = Concat <axis: int = 1> ({", ".join(f"pull_{a}" for a in _AXES)})
    pull_steps = Mul (pull, slopes)
    difference_force = Mul (pull_steps, feature_weight)
    force = Add (correlation_force, difference_force)"""


def _smoothed(field: str, kernel: str, out: str) -> str:
    """All components of a field convolved along each axis in turn; the border repeats."""
    lines = [f"{out}_0 = Transpose <perm: ints = [1, 0, 2, 3, 4]> ({field})"]
    for number, (a, axis) in enumerate(_AXES.items()):
        before = ", ".join(["no_pad"] + ["zero_int"] * (axis - 2))
        between = ", ".join(["zero_int"] * (4 - axis) + ["no_pad"] + ["zero_int"] * (axis - 2))
        after = "".join([", zero_int"] * (4 - axis))
        p = f"{out}_{a}"
        lines.append(f"""
    {p}_count = Shape ({kernel}_taps_{a})
    {p}_reach = Div ({p}_count, two_int)
    {p}_pads = Concat <axis: int = 0> ({before}, {p}_reach, {between}, {p}_reach{after})
    {p}_padded = Pad <mode: string = "edge"> ({out}_{number}, {p}_pads)
    {p}_weight = Reshape ({kernel}_taps_{a}, taps_{a})
    {out}_{number + 1} = Conv ({p}_padded, {p}_weight)""")
    lines.append(f"\n    {out} = Transpose <perm: ints = [1, 0, 2, 3, 4]> ({out}_{len(_AXES)})")
    return "".join(lines)

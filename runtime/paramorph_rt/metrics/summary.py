"""The metrics of one registration, as metrics.json shows them.

Those of images and labels are tables by stage, such as "before" (both images where their headers
put them), "affine" and "after".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..steps.foreground import foreground_of
from ..steps.intensity import intensity_range, scaled
from .overlap import dice, label_counts, mean_over, present_labels
from .similarity import mse, ncc, ssim, within
from .surface import NSD_TOLERANCE_MM, surface_distances

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Bool, Float, Integer

    from ..images.volume import Volume

    Stage = str

# SSIM and MSE look at images from their background to this percentile of what is above it.
BRIGHT_PERCENTILE = 99.5


def compare_images(
    fixed: Volume,
    stages: Mapping[Stage, Float[np.ndarray, "i j k"]],
    measures: Sequence[str] = ("ncc", "ssim", "mse"),
    counting: Bool[np.ndarray, "i j k"] | None = None,
) -> dict[str, dict[Stage, float | None]]:
    """Likeness of each stage's moving image to the fixed one, within the fixed foreground.

    NCC sees no linear change of intensity; for SSIM and MSE, which would, each image is scaled to
    [0, 1] by its own range (`intensity.normalise`).

    Args:
        fixed: Image with contrast.
        stages: The moving image on the fixed grid.
        measures: Of "ncc", "ssim" and "mse".
        counting: Voxels of the fixed grid that count; None is all.

    Returns:
        {measure: {stage: value}}; None where the moving image is constant, or no voxel counts.
    """
    mask = foreground_of(fixed)
    if counting is not None:
        mask &= counting
    if not mask.any():
        return {measure: dict.fromkeys(stages) for measure in measures}
    target = _Image(fixed.data, mask)
    result: dict[str, dict[Stage, float | None]] = {measure: {} for measure in measures}
    for stage, moving in stages.items():
        image = _Image(moving, mask)
        constant = moving.min() == moving.max()
        for measure, values in result.items():
            values[stage] = None if constant else _MEASURES[measure](target, image)
    return result


class _Image:
    """What measures look at; each is computed once."""

    def __init__(self, data: Float[np.ndarray, "i j k"], mask: Bool[np.ndarray, "i j k"]) -> None:
        self.data, self.mask = data, mask

    @cached_property
    def inside(self) -> Float[np.ndarray, " n"]:
        return within(self.mask, self.data)

    @cached_property
    def scaled(self) -> Float[np.ndarray, "i j k"]:
        return scaled(self.data, *self._range)

    @cached_property
    def scaled_inside(self) -> Float[np.ndarray, " n"]:
        return scaled(self.inside, *self._range)

    @cached_property
    def _range(self) -> tuple[float, float]:
        return intensity_range(self.data, 0, BRIGHT_PERCENTILE)


_MEASURES: dict[str, Callable[[_Image, _Image], float | None]] = {
    "ncc": lambda fixed, moving: ncc(fixed.inside, moving.inside),
    "mse": lambda fixed, moving: mse(fixed.scaled_inside, moving.scaled_inside),
    "ssim": lambda fixed, moving: ssim(fixed.scaled, moving.scaled, fixed.mask),
}


def compare_labels(
    fixed: Volume,
    moving: Volume | None,
    stages: Mapping[Stage, Integer[np.ndarray, "i j k"]],
    tolerance_mm: float = NSD_TOLERANCE_MM,
    surfaces: bool = True,
) -> dict[str, dict[Stage, Any]]:
    """Overlap, distance and volumes of each stage's moving labels and the fixed ones.

    Per label over the union of both original maps; the means only over labels that both have, so
    a label that the warp loses counts as Dice and NSD 0. It has no surface left, so its distances
    are None and outside the mean. A label that neither of the compared maps has is None.

    Args:
        fixed: Label map.
        moving: Original label map on its own grid; None if unknown: the means are then over the
            labels of the fixed map.
        stages: The moving labels on the fixed grid; surfaces are not measured for "affine".
        tolerance_mm: Of the normalised surface distance.
        surfaces: Measure the distances, too; of many labels they take longest.

    Returns:
        "dice", and with `surfaces` "assd_mm", "hd95_mm", "nsd": {stage: {"mean", "labels": {label:
        value}}}; "volume_mm3": the same for "fixed", "moving" and "after";
        "volume_change_percent": the same for "after", where the original is known.
    """
    in_fixed = present_labels(fixed.data)
    in_moving = in_fixed if moving is None else present_labels(moving.data)
    warped = set[int]().union(*map(present_labels, stages.values())) if moving is None else set()
    union, common = sorted(in_fixed | in_moving | warped), sorted(in_fixed & in_moving)
    kinds = ("dice", "assd_mm", "hd95_mm", "nsd") if surfaces else ("dice",)
    result: dict[str, dict[Stage, Any]] = {kind: {} for kind in kinds}
    for stage, labels in stages.items():
        overlap = dice(fixed.data, labels)
        result["dice"][stage] = _with_mean({label: overlap.get(label) for label in union}, common)
        if not surfaces or stage == "affine":  # those of a brain's labels take seconds per stage
            continue
        spacing = fixed.grid.spacing
        distances = surface_distances(fixed.data, labels, spacing, union, tolerance_mm)
        for name in ("assd_mm", "hd95_mm"):
            values = {label: each and getattr(each, name) for label, each in distances.items()}
            result[name][stage] = _with_mean(values, common)
        close = {
            # A surface that only one map has is nowhere within any tolerance of the other.
            label: each.nsd if each else (None if overlap.get(label) is None else 0.0)
            for label, each in distances.items()
        }
        result["nsd"][stage] = _with_mean(close, common)
    return result | _volumes(fixed, moving, stages, union, common)


def _volumes(
    fixed: Volume,
    moving: Volume | None,
    stages: Mapping[Stage, Integer[np.ndarray, "i j k"]],
    union: list[int],
    common: list[int],
) -> dict[str, dict[Stage, Any]]:
    maps = {"fixed": (fixed.data, fixed)}
    if moving is not None:
        maps["moving"] = (moving.data, moving)
    if "after" in stages:
        maps["after"] = (stages["after"], fixed)
    volumes: dict[str, dict[int, float]] = {}
    for name, (labels, where) in maps.items():
        voxel_mm3 = abs(float(np.linalg.det(where.grid.affine[:3, :3])))
        counts = label_counts(labels)
        volumes[name] = {label: counts.get(label, 0) * voxel_mm3 for label in union}
    result = {"volume_mm3": {name: _with_mean(table, common) for name, table in volumes.items()}}
    if "moving" in volumes and "after" in volumes:
        change = {
            label: 100 * (volumes["after"][label] / original - 1) if original else None
            for label, original in volumes["moving"].items()
        }
        result["volume_change_percent"] = {"after": _with_mean(change, common)}
    return result


def _with_mean(values: Mapping[int, float | None], common: list[int]) -> dict[str, Any]:
    return {
        "mean": mean_over(values, common),
        "labels": {str(label): value for label, value in values.items()},
    }

"""The metrics of one registration, as metrics.json shows them.

Each is a table by stage: "before" (both images where their headers put them), "affine" (not for
ASSD and HD95) and "after".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..preprocess import foreground_threshold
from .overlap import dice, mean_over, present_labels
from .similarity import ncc
from .surface import surface_distances

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from jaxtyping import Float, Integer

    from ..volume import Volume

    Stage = str


def compare_images(
    fixed: Volume, stages: Mapping[Stage, Float[np.ndarray, "i j k"]]
) -> dict[Stage, float | None]:
    """NCC of each stage's moving image with the fixed one, within the fixed foreground."""
    mask = fixed.data > foreground_threshold(fixed.data)
    return {stage: ncc(fixed.data, moving, mask) for stage, moving in stages.items()}


def compare_labels(
    fixed: Volume, moving: Volume, stages: Mapping[Stage, Integer[np.ndarray, "i j k"]]
) -> dict[str, dict[Stage, Any]]:
    """Dice, ASSD and HD95 of each stage's moving labels with the fixed ones.

    Per label over the union of both maps; the means only over labels that both *original* maps
    have, so a label that the warp loses counts as Dice 0. It has no surface left, so its
    distances are None and outside the mean.

    Args:
        fixed: Label map.
        moving: Original label map on its own grid.
        stages: The moving labels on the fixed grid.
    """
    in_fixed, in_moving = present_labels(fixed.data), present_labels(moving.data)
    union, common = sorted(in_fixed | in_moving), sorted(in_fixed & in_moving)
    result: dict[str, dict[Stage, Any]] = {"dice": {}, "assd_mm": {}, "hd95_mm": {}}
    for stage, labels in stages.items():
        overlap = dice(fixed.data, labels)
        overlap = {label: overlap.get(label, 0.0) for label in union}
        result["dice"][stage] = _with_mean(overlap, common)
        if stage != "affine":  # the surfaces of a brain's labels take seconds per stage
            distances = surface_distances(fixed.data, labels, fixed.grid.spacing, union)
            for name in ("assd_mm", "hd95_mm"):
                values = {label: d and getattr(d, name) for label, d in distances.items()}
                result[name][stage] = _with_mean(values, common)
    return result


def _with_mean(values: Mapping[int, float | None], common: list[int]) -> dict[str, Any]:
    return {
        "mean": mean_over(values, common),
        "labels": {str(label): value for label, value in values.items()},
    }

"""Station 6 of a registration: images, labels and field are measured on the fixed image's grid."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry.resample import resample_to_grid
from ..images.label_names import names_of_labels
from ..metrics.definitions import definitions_of
from ..metrics.deformation import regularity
from ..metrics.summary import compare_images, compare_labels
from ..metrics.surface import NSD_TOLERANCE_MM
from ..system.threads import in_parallel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ..geometry.resample import Interpolation
    from ..images.volume import Volume
    from .align import Start
    from .load import Images
    from .warp import Warped

# SSIM of three stages would take as long as all other metrics without labels.
MEASURES = ("ncc", "mse")


def measure(
    images: Images,
    start: Start,
    warped: Warped,
    surfaces: bool,
    label_names: Mapping[int, str] | None,
) -> dict[str, Any]:
    """The metrics of the result, and of the stages before it, on the fixed image's grid.

    Args:
        images: The pair.
        start: Has the affine.
        warped: On the fixed image's grid.
        surfaces: Measure the distances between the surfaces of labels.
        label_names: By label.
    """
    metrics: dict[str, Any] = {}
    for measured in in_parallel(
        partial(_of_images, images, start.affine, warped),
        partial(_of_labels, images, start.affine, warped, surfaces),
        lambda: regularity(warped.field),
    ):
        metrics |= measured
    metrics["definitions"] = definitions_of(metrics)
    if label_names and "dice" in metrics:
        present = metrics["dice"]["after"]["labels"]
        metrics["label_names"] = names_of_labels(present, label_names)
    return metrics


def _of_images(images: Images, affine: Float[np.ndarray, "4 4"], warped: Warped) -> dict[str, Any]:
    stages = _stages(images.moving, affine, warped.image, "linear")
    return compare_images(images.fixed, stages, MEASURES, _where_masks_count(images, warped))


def _of_labels(
    images: Images, affine: Float[np.ndarray, "4 4"], warped: Warped, surfaces: bool
) -> dict[str, Any]:
    moving, fixed = images.moving_labels, images.fixed_labels
    if not (moving and fixed and warped.labels):
        return {}
    stages = _stages(moving, affine, warped.labels, "nearest")
    tables = compare_labels(fixed, moving, stages, surfaces=surfaces)
    return tables | ({"nsd_tolerance_mm": NSD_TOLERANCE_MM} if surfaces else {})


def _stages(
    moving: Volume,
    affine: Float[np.ndarray, "4 4"],
    warped: Volume,
    interpolation: Interpolation,
) -> dict[str, np.ndarray]:
    """The moving data on the fixed grid before, after the affine, and after all."""
    # Not smoothed, because the warp does not smooth either.
    before, aligned = (
        resample_to_grid(moving, warped.grid, transform, interpolation, smooth=False)
        for transform in (None, affine)
    )
    return {"before": before, "affine": aligned, "after": warped.data}


def _where_masks_count(images: Images, warped: Warped) -> Bool[np.ndarray, "i j k"] | None:
    """Voxels of the fixed grid that both masks leave, the moving one's after all."""
    counting = [mask.data != 0 for mask in (warped.mask, images.fixed_mask) if mask is not None]
    return np.logical_and.reduce(counting) if counting else None

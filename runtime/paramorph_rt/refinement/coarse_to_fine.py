"""Refinement of a field on the pair itself: coarse to fine, by local correlation and features.

Each iteration warps the moving image by the field, computes at every voxel which way the squared
local correlation with the fixed image grows, smooths these forces, and composes the field with a
step along them. Steps are short against the smoothing, so the field stays invertible. A model's
features pull beside the intensities, where there are any.

Source:
    Avants et al., Symmetric diffeomorphic image registration with cross-correlation (2008), for the
    force; Vercauteren et al., Diffeomorphic demons (2009), for the composition and its smoothing;
    Yushkevich et al., greedy (2016), for going without a symmetric middle.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..geometry.field import DisplacementField, field_from_network
from ..geometry.resample import resample_to_grid
from ..geometry.spaces import Grid
from ..images.volume import Volume
from ..steps.preparation import images_on_grid
from . import compiled, graph, slabs
from .forces import RADIUS
from .images import LevelImages
from .plan import compares_features, levels_on_grids
from .rescaling import rescaled
from .self_similarity import FIELD_SIGMA, FINEST_MM, JUDGED_MM, are_unlike
from .settings import Level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float

    from ..steps.load import Images
    from ..steps.predict import Prediction

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Refined:
    """A refined field.

    Attributes:
        field: Without the affine.
        metric: What was compared: "ncc" or "mind".
    """

    field: DisplacementField
    metric: str


def refine(
    images: Images,
    affine: Float[np.ndarray, "4 4"],
    start: Prediction,
    levels: Sequence[Level],
    threads: int | None = None,
    metric: str = "ncc",
) -> Refined:
    """Improve a field until it matches this pair.

    Args:
        images: The pair; holes in the masks drive nothing.
        affine: Fixed world mm → moving world mm (RAS).
        start: The field where the refinement starts, without the affine, and the features that it
            compares. Its field of view is refined, along its axes; its spacing does not matter.
        levels: Coarse to fine.
        threads: None uses all cores.
        metric: "ncc" compares intensities by local correlation, "mind" also descriptors of
            self-similarity, "auto" these where the images are unlike.

    Returns:
        The field without the affine, on the finest grid; that of `start` if nothing is to be done.

    Raises:
        AlignmentError: The moving foreground lies outside the field of view.
    """
    iterate = compiled.iterate if slabs.is_available() else graph.iterate
    view, features = start.view, start.features
    plan = list(levels_on_grids(view, images.fixed.grid, levels))
    if not plan:
        return Refined(start.field, "ncc")
    finest = plan[-1][1]
    both = images.masked_moving, images.masked_fixed
    whole = images_on_grid(*both, affine, finest, start.intensity)
    counts = _counting(images.fixed_mask, whole.holes, finest)
    finest_images = LevelImages(whole.moving, whole.fixed, finest, None, counts)
    pyramid = _pyramid(finest_images, plan, threads)
    metric = _metric(metric, [level for level, _ in plan], pyramid)
    displacement, last = _voxels(start.field, plan[0][1]), plan[0][1]
    for (level, _), pair in zip(plan, pyramid, strict=True):
        if features is not None and compares_features(level, view):
            pair = replace(pair, features=features.on(view, pair.grid, threads))
            level = replace(level, field_sigma=features.smoothing * level.feature_sigma)
        if metric == "mind" and _compares_descriptors(level):
            pair = replace(pair, features=pair.with_descriptors())
            level = replace(level, field_sigma=max(level.field_sigma, FIELD_SIGMA))
        log.debug("refinement: %s voxels, %d steps", pair.grid.shape, level.iterations)
        displacement = in_voxels_of(displacement, last, pair.grid, threads)
        displacement, last = iterate(pair, level, displacement, threads), pair.grid
    return Refined(field_from_network(displacement, last), metric)


def _metric(wanted: str, levels: Sequence[Level], pyramid: Sequence[LevelImages]) -> str:
    """What is compared: "auto" depends on the images, as far as `JUDGED_MM` shows them."""
    if not any(map(_compares_descriptors, levels)):
        return "ncc"
    if wanted != "auto":
        return wanted
    coarse = [
        pair for pair, level in zip(pyramid, levels, strict=True) if level.spacing_mm >= JUDGED_MM
    ]
    judged = (coarse or pyramid)[-1]
    return "mind" if are_unlike(judged.moving, judged.fixed) else "ncc"


def _compares_descriptors(level: Level) -> bool:
    return level.features > 0 and level.spacing_mm >= FINEST_MM


def engine() -> str:
    """What the refinement runs in here: "compiled", or "onnxruntime"."""
    return "compiled" if slabs.is_available() else "onnxruntime"


def _pyramid(
    finest: LevelImages, plan: Sequence[tuple[Level, Grid]], threads: int | None
) -> list[LevelImages]:
    """The images on all grids, each made from those on the next finer one."""
    images = [finest]
    for _, grid in reversed(plan[:-1]):
        images.append(images[-1].on(grid, threads))
    return images[::-1]


def _counting(
    fixed_mask: Volume | None, holes: Bool[np.ndarray, "i j k"] | None, grid: Grid
) -> Float[np.ndarray, "i j k"] | None:
    """Where forces count: in and beside the mask, but nowhere where a hole is correlated with."""
    if fixed_mask is None and holes is None:
        return None
    counts = np.ones(grid.shape, bool)
    if fixed_mask is not None:
        mask = replace(fixed_mask, data=(fixed_mask.data != 0).astype(np.uint8))
        counts &= _widened(resample_to_grid(mask, grid, None, "nearest") != 0)
    if holes is not None:
        counts &= ~_widened(holes)
    return counts.astype(np.float32)


def _widened(region: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """A region and all voxels whose correlation it is a part of."""
    image = sitk.GetImageFromArray(region.astype(np.uint8))
    return sitk.GetArrayFromImage(sitk.BinaryDilate(image, [RADIUS] * 3, sitk.sitkBox)) != 0


def _voxels(field: DisplacementField, grid: Grid) -> Float[np.ndarray, "3 i j k"]:
    """A field in voxels of a grid, along its axes."""
    vectors_mm = field.resampled_to(grid).vectors_mm
    to_voxels = grid.world_to_index[:3, :3].astype(np.float32)
    return np.stack([vectors_mm @ row for row in to_voxels])


def in_voxels_of(
    displacement_vox: Float[np.ndarray, "3 d h w"],
    grid: Grid,
    target: Grid,
    threads: int | None = None,
) -> Float[np.ndarray, "3 a b c"]:
    """A displacement in voxels of one grid, in those of another of the same field of view."""
    growth = np.divide(target.shape, grid.shape).astype(np.float32)
    return (
        rescaled(displacement_vox, grid, target, threads)
        * growth[:, np.newaxis, np.newaxis, np.newaxis]
    )

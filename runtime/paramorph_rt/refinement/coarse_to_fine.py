"""Refinement of a field on the pair itself: coarse to fine, by local correlation and features.

Each iteration warps the moving image by the field, asks at every voxel which way the squared local
correlation with the fixed image grows, smooths these forces, and composes the field with a step
along them. Steps are short against the smoothing, so the field stays invertible. A model's features
pull beside the intensities, where there are any.

Source:
    Avants et al., Symmetric diffeomorphic image registration with cross-correlation (2008), for the
    force; Vercauteren et al., Diffeomorphic demons (2009), for the composition and its smoothing;
    Yushkevich et al., greedy (2016), for going without a symmetric middle.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..geometry.field import DisplacementField, field_from_network
from ..geometry.resample import resample_to_grid
from ..geometry.spaces import Grid
from ..images.volume import Volume
from ..steps.foreground import foreground_box, masked
from ..steps.preparation import images_on_grid
from . import compiled, graph
from .forces import RADIUS
from .images import Features, LevelImages
from .rescaling import rescaled
from .settings import Level

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Bool, Float

    from ..bundle import IntensitySpec

log = logging.getLogger(__name__)

#: A level of more voxels is left out: it would take longer, and more memory, than it is worth.
MOST_VOXELS = 24_000_000
#: A level must be at least this share of the fixed image's finest spacing, or it shows nothing new.
_FINER = 0.75
_LEAST_SIZE = 4  # voxels along an axis
#: Features are compared on levels whose voxels are not smaller than theirs by more than this.
_COARSER = 1.4
#: Around the foreground, where there is no network to say how much of the image is to be seen.
MARGIN_MM = 8.0


def refine(
    moving: Volume,
    fixed: Volume,
    affine: Float[np.ndarray, "4 4"],
    grid: Grid,
    levels: Sequence[Level],
    intensity: IntensitySpec,
    *,
    start: DisplacementField | None = None,
    features: Features | None = None,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
    threads: int | None = None,
) -> DisplacementField:
    """Improve a field until it matches this pair.

    Args:
        moving: Image on its own grid.
        fixed: Image on its own grid.
        affine: Fixed world mm → moving world mm (RAS).
        grid: Its field of view is refined, along its axes; its spacing does not matter.
        levels: Coarse to fine.
        intensity: Percentiles that become 0 and 1.
        start: Where it starts, without the affine; None is the affine alone.
        features: Of both images, on `grid`.
        moving_mask: As of `prepare_pair`; holes drive nothing.
        fixed_mask: The same for `fixed`.
        threads: None uses all cores.

    Returns:
        The field without the affine, on the finest grid; `start` itself if nothing is to be done.

    Raises:
        AlignmentError: The moving foreground lies outside the field of view.
    """
    iterate = compiled.iterate if compiled.is_available() else graph.iterate
    masks = {"moving_mask": moving_mask, "fixed_mask": fixed_mask}
    plan = list(_grids(grid, fixed.grid, levels))
    if not plan:
        return start or DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))
    finest = plan[-1][1]
    whole = images_on_grid(moving, fixed, affine, finest, intensity, **masks)
    counts = _counting(fixed_mask, whole.holes, finest)
    pyramid = _pyramid(LevelImages(whole.moving, whole.fixed, finest, None, counts), plan)
    displacement, last = _voxels(start, plan[0][1]), plan[0][1]
    for (level, _), images in zip(plan, pyramid, strict=True):
        if features is not None and _compares_features(level, grid):
            images = replace(images, features=features.on(grid, images.grid))
            level = replace(level, field_sigma=level.feature_sigma)
        log.debug("refinement: %s voxels, %d steps", images.grid.shape, level.iterations)
        displacement = iterate(images, level, _rescaled(displacement, last, images.grid), threads)
        last = images.grid
    return field_from_network(displacement, last)


def _compares_features(level: Level, grid: Grid) -> bool:
    return level.features > 0 and level.spacing_mm * _COARSER >= grid.spacing.min()


def engine() -> str:
    """What the refinement runs in here: "compiled", or "onnxruntime"."""
    return "compiled" if compiled.is_available() else "onnxruntime"


def view_over(fixed: Volume, mask: Volume | None = None) -> Grid:
    """A field of view over the foreground of the fixed image, along its own axes, at 1 mm.

    Args:
        fixed: Image on its own grid.
        mask: As of `refine`.
    """
    low, high = (np.array(corner) for corner in foreground_box(masked(fixed, mask)))
    margin = np.ceil(MARGIN_MM / fixed.grid.spacing)
    box = fixed.grid.cropped(low - margin, high + margin)
    return box.with_shape(np.maximum(1, np.round(box.spacing * box.shape)).astype(int).tolist())


def _grids(view: Grid, fixed: Grid, levels: Sequence[Level]) -> Iterator[tuple[Level, Grid]]:
    """The levels that are worth it for a fixed image, each with its grid."""
    extents = view.spacing * view.shape
    native = fixed.spacing[np.abs(view.directions.T @ fixed.directions).argmax(axis=1)]
    usable = [level for level in levels if level.iterations]
    for level in usable:
        spacing = np.maximum(level.spacing_mm, native)
        shape = np.maximum(_LEAST_SIZE, np.round(extents / spacing).astype(int))
        if level is not usable[0]:
            if level.spacing_mm < _FINER * native.min():
                log.debug(
                    "refinement: no level of %g mm for voxels of %s", level.spacing_mm, native
                )
                continue
            if math.prod(shape.tolist()) > MOST_VOXELS:
                log.info(
                    "refinement: no level of %g mm, which has too many voxels", level.spacing_mm
                )
                continue
        yield level, view.with_shape(shape.tolist())


def _pyramid(finest: LevelImages, plan: Sequence[tuple[Level, Grid]]) -> list[LevelImages]:
    """The images on all grids, each made from those on the next finer one."""
    images = [finest]
    for _, grid in reversed(plan[:-1]):
        images.append(images[-1].on(grid))
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


def _voxels(field: DisplacementField | None, grid: Grid) -> Float[np.ndarray, "3 i j k"]:
    """A field in voxels of a grid, along its axes."""
    if field is None:
        return np.zeros((3, *grid.shape), np.float32)
    vectors_mm = field.resampled_to(grid).vectors_mm
    to_voxels = grid.world_to_index[:3, :3].astype(np.float32)
    return np.stack([vectors_mm @ row for row in to_voxels])


def _rescaled(
    displacement_vox: Float[np.ndarray, "3 d h w"], grid: Grid, target: Grid
) -> Float[np.ndarray, "3 a b c"]:
    """A displacement in voxels of one level, in those of another."""
    growth = np.divide(target.shape, grid.shape).astype(np.float32)
    return rescaled(displacement_vox, grid, target) * growth[:, np.newaxis, np.newaxis, np.newaxis]

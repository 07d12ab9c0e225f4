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
from typing import TYPE_CHECKING

import numpy as np

from ..field import DisplacementField, field_from_network
from ..preprocess import images_on_grid, resample_to_grid
from ..spaces import Grid
from ..volume import Volume
from . import compiled
from .images import Features, LevelImages
from .settings import Level

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Float

    from ..bundle import IntensitySpec

log = logging.getLogger(__name__)

#: A level of more voxels is left out: it would take longer, and more memory, than it is worth.
MOST_VOXELS = 24_000_000
#: A level must be at least this share of the fixed image's finest spacing, or it shows nothing new.
_FINER = 0.75
_LEAST_SIZE = 4  # voxels along an axis


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
    field = start
    masks = {"moving_mask": moving_mask, "fixed_mask": fixed_mask}
    plan = list(_grids(grid, fixed.grid, levels))
    finest = plan[-1][1] if plan else grid
    whole = images_on_grid(moving, fixed, affine, finest, intensity, **masks)
    counts = None if whole.holes is None else (~whole.holes).astype(np.float32)
    for level, level_grid in plan:
        arrays = whole.moving, whole.fixed, counts
        coarse = [_coarsened(array, finest, level_grid) for array in arrays]
        on_level = None
        if features is not None and level.features:
            on_level = Features(
                _channels(features.moving, grid, level_grid),
                _channels(features.fixed, grid, level_grid),
            )
        images = LevelImages(coarse[0], coarse[1], level_grid, on_level, coarse[2])
        log.debug("refinement: %s voxels, %d iterations", level_grid.shape, level.iterations)
        displacement = compiled.iterate(images, level, _voxels(field, level_grid), threads)
        field = field_from_network(displacement, level_grid)
    return field or DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))


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


def _coarsened(
    array: Float[np.ndarray, "i j k"] | None, grid: Grid, target: Grid
) -> Float[np.ndarray, "a b c"] | None:
    if array is None or target.shape == grid.shape:
        return array
    return np.ascontiguousarray(resample_to_grid(Volume(array, grid, ""), target))


def _channels(
    channels: Float[np.ndarray, "c i j k"], grid: Grid, target: Grid
) -> Float[np.ndarray, "c a b d"]:
    if target.shape == grid.shape:
        return np.ascontiguousarray(channels, np.float32)
    return np.stack([_coarsened(channel, grid, target) for channel in channels])


def _voxels(field: DisplacementField | None, grid: Grid) -> Float[np.ndarray, "3 i j k"]:
    """A field in voxels of a grid, along its axes."""
    if field is None:
        return np.zeros((3, *grid.shape), np.float32)
    vectors_mm = field.resampled_to(grid).vectors_mm
    to_voxels = np.linalg.inv(grid.affine[:3, :3]).astype(np.float32)
    return np.stack([vectors_mm @ row for row in to_voxels])

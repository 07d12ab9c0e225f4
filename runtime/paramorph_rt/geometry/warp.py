"""Resample a volume through a displacement field, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import SimpleITK as sitk

from ..images.volume import Volume
from .resample import INTERPOLATORS, outside_value
from .spaces import from_sitk, to_sitk

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .field import DisplacementField
    from .resample import Interpolation
    from .spaces import Grid


def warp_volume(
    moving: Volume, field: DisplacementField, interpolation: Interpolation = "linear"
) -> Volume:
    """Sample the original moving voxels where the field points.

    ``warped[p] = moving(x + u(x))`` with x the world position of voxel p of the field's grid.

    Args:
        moving: Image or labels on its own grid.
        field: Fixed → moving, complete (an affine must be part of it).
        interpolation: "nearest" for label maps, so that no new labels appear; "bspline" (cubic)
            is sharper than "linear" and overshoots a little at edges.

    Returns:
        Volume on the field's grid, dtype of `moving`. Outside the moving image it has that image's
        background, and 0 for "nearest".
    """
    return next(warp_volumes([(moving, interpolation)], field))


def warp_volumes(
    volumes: Iterable[tuple[Volume, Interpolation]], field: DisplacementField
) -> Iterator[Volume]:
    """`warp_volume` of one after the other, such as an image and its labels, or a series."""
    vectors = to_sitk(field.vectors_mm, field.grid)
    for volume, interpolation in volumes:
        yield _warped(volume, vectors, field.grid, interpolation)


def _warped(
    moving: Volume, vectors: sitk.Image, grid: Grid, interpolation: Interpolation
) -> Volume:
    warped = sitk.Warp(
        to_sitk(moving.data, moving.grid),
        vectors,
        interpolator=INTERPOLATORS[interpolation],
        outputSize=grid.shape,
        outputOrigin=vectors.GetOrigin(),
        outputSpacing=vectors.GetSpacing(),
        outputDirection=vectors.GetDirection(),
        edgePaddingValue=outside_value(moving, interpolation),
    )
    return Volume(from_sitk(warped)[0], grid, moving.name)

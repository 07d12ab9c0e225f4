"""Several transforms as one: composed into one file, or applied with one interpolation.

A list of transforms is read as ANTs reads its ``-t``: a point of the fixed image passes them from
left to right, ``x_moving = t[-1](… t[1](t[0](x_fixed)))``. Beyond its grid a field moves nothing,
as in ITK.
"""

from __future__ import annotations

from functools import reduce
from operator import matmul
from typing import TYPE_CHECKING

import SimpleITK as sitk

from ..errors import TransformError
from ..images.volume import Volume
from .field import DisplacementField
from .resample import outside_value, resampled
from .spaces import from_sitk, place, to_sitk
from .transform import as_transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .resample import Interpolation
    from .spaces import Grid
    from .transform import Affine, Transform


def compose(
    transforms: Sequence[Transform], grid: Grid | None = None
) -> Affine | DisplacementField:
    """Join transforms into one.

    Args:
        transforms: In the order in which a fixed point passes them; at least one.
        grid: Of the resulting field; None takes the first transform's own, if it is a field.

    Returns:
        An affine if all are affines, else a field.

    Raises:
        TransformError: A grid is needed and not given.
    """
    first, *others = map(as_transform, transforms)
    if all(other.grid is None for other in others) and (first.grid is None or grid is None):
        return reduce(matmul, [*reversed(others), first])
    grid = grid or first.grid
    if grid is None:
        raise TransformError(
            "composition: expected to know where the field shall lie, as the first transform is an "
            "affine, got no image; pass --fixed."
        )
    to_field = sitk.TransformToDisplacementFieldFilter()
    to_field.SetSize(grid.shape)
    place(to_field, grid)
    to_field.SetOutputPixelType(sitk.sitkVectorFloat32)
    vectors, _ = from_sitk(to_field.Execute(itk_transform(transforms)))
    return DisplacementField(grid, vectors)


def apply_transforms(
    moving: Volume,
    transforms: Sequence[Transform],
    grid: Grid,
    interpolation: Interpolation = "linear",
) -> Volume:
    """Resample a volume through a list of transforms, interpolating its voxels once.

    Args:
        moving: Image or labels on its own grid.
        transforms: In the order in which a fixed point passes them.
        grid: Of the result, in the fixed world.
        interpolation: "nearest" for label maps.

    Returns:
        Volume on `grid`, dtype of `moving`; outside the moving image its background, or label 0.
    """
    image = to_sitk(moving.data, moving.grid)
    outside = outside_value(moving, interpolation)
    warped = resampled(image, grid, itk_transform(transforms), interpolation, outside)
    return Volume(from_sitk(warped)[0], grid, moving.name)


def itk_transform(transforms: Sequence[Transform]) -> sitk.CompositeTransform:
    """The same list for ITK, which applies the last of its own list first."""
    return sitk.CompositeTransform([as_transform(each).to_itk() for each in reversed(transforms)])

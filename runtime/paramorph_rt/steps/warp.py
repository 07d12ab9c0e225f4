"""Station 5 of a registration: everything that moves is warped by the field."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..geometry.warp import warp_volumes
from ..images.background import background_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..geometry.field import DisplacementField
    from ..geometry.resample import Interpolation
    from ..geometry.spaces import Grid
    from ..images.volume import Volume
    from ..system.stopwatch import Stopwatch
    from .load import Images


@dataclass(frozen=True, eq=False)
class Deformation:
    """How the moving image is deformed onto the fixed one.

    Attributes:
        field: Without the affine, on any grid in the fixed world.
        affine: Fixed world mm → moving world mm (RAS), after the field.
    """

    field: DisplacementField
    affine: Float[np.ndarray, "4 4"]

    def on(self, grid: Grid) -> DisplacementField:
        """The complete field on a grid, fixed → moving."""
        return self.affine @ self.field.resampled_to(grid)


@dataclass(frozen=True, eq=False)
class Warped:
    """The moving image and its labels, if there are any, on the grid of a field.

    Attributes:
        image: Intensities of the moving image.
        labels: Of the moving image, nearest neighbour.
        mask: Of the moving image, nearest neighbour.
        field: That they were warped by: complete, affine included, fixed → moving.
    """

    image: Volume
    labels: Volume | None
    mask: Volume | None
    field: DisplacementField

    @property
    def masked_image(self) -> Volume:
        """The image as far as its mask leaves it; its background elsewhere."""
        if self.mask is None:
            return self.image
        data = np.where(self.mask.data != 0, self.image.data, background_of(self.image.data))
        return replace(self.image, data=data)


def warp(images: Images, field: DisplacementField, interpolation: Interpolation) -> Warped:
    """Interpolate the moving image, its labels and its mask once from their original voxels."""
    volumes: dict[str, tuple[Volume, Interpolation]] = {"image": (images.moving, interpolation)}
    for name, volume in (("labels", images.moving_labels), ("mask", images.moving_mask)):
        if volume is not None:
            volumes[name] = volume, "nearest"
    warped = dict(zip(volumes, warp_volumes(volumes.values(), field), strict=True))
    return Warped(warped["image"], warped.get("labels"), warped.get("mask"), field)


def warp_along(
    images: Images, field: DisplacementField, interpolation: Interpolation, seconds: Stopwatch
) -> dict[str, Volume]:
    """Everything else that is warped by the field, by its file name."""
    if not images.also:
        return {}
    with seconds("also"):
        each = [(volume, how or interpolation) for volume, how in images.also]
        return {volume.name: volume for volume in warp_volumes(each, field)}

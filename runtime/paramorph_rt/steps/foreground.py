"""The foreground of an image: threshold, box, masks and their holes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import VolumeError
from ..geometry.spaces import from_sitk, to_sitk
from ..images.background import background_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ..geometry.spaces import Grid
    from ..images.volume import Volume


@dataclass(frozen=True, eq=False)
class MaskedImage:
    """An image and the mask of where it counts; what follows from the two is computed once.

    Attributes:
        volume: The image as it is.
        mask: On the grid of `volume`; what is not 0 counts, None is everything.
    """

    volume: Volume
    mask: Volume | None = None

    @cached_property
    def image(self) -> Volume:
        """The image as far as its mask leaves it, see `masked`."""
        return masked(self.volume, self.mask)

    @cached_property
    def hole(self) -> Volume | None:
        """Where the mask has a hole, see `hole_of`."""
        return hole_of(self.mask)


def foreground_threshold(data: Float[np.ndarray, "i j k"]) -> float:
    """Intensity that parts foreground from background: 5 % of the robust range above the latter.

    The range ends at the 99.5th percentile, so that a few bright voxels do not move it.
    """
    low = background_of(data)
    # Every third voxel per axis is a 27th of the work and the same percentile to a percent.
    high = float(np.percentile(data[::3, ::3, ::3], 99.5))
    if high <= low:  # almost everything is background
        high = float(data.max())
    return low + 0.05 * (high - low)


def foreground_of(volume: Volume) -> Bool[np.ndarray, "i j k"]:
    """Voxels above `foreground_threshold`."""
    return volume.data > foreground_threshold(volume.data)


def foreground_box(volume: Volume) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First voxel of the foreground on each axis, and one past its last."""
    mask = foreground_of(volume)
    present = [np.flatnonzero(_any_along_others(mask, axis)) for axis in range(3)]
    return tuple(int(p[0]) for p in present), tuple(int(p[-1]) + 1 for p in present)


def share_outside(volume: Volume, grid: Grid) -> float:
    """Share of the foreground's voxels whose centres lie in no voxel of another grid, 0 to 1."""
    index = np.argwhere(foreground_of(volume))
    there = grid.index(volume.grid.world(index))
    covered = ((there >= -0.5) & (there <= np.array(grid.shape) - 0.5)).all(axis=1)
    return 1.0 - float(covered.mean())


def masked(volume: Volume, mask: Volume | None) -> Volume:
    """The volume with its background wherever the mask is 0.

    Args:
        volume: Image.
        mask: On the same grid; None leaves the image as it is.

    Raises:
        VolumeError: The mask leaves nothing of the foreground.
    """
    if mask is None:
        return volume
    data = np.where(mask.data != 0, volume.data, background_of(volume.data))
    if not (data > foreground_threshold(volume.data)).any():
        raise VolumeError(
            f"{mask.name}: expected a mask with some of what {volume.name} shows, got one of "
            "nothing but its background; check that it is the right file."
        )
    return replace(volume, data=data)


def hole_of(mask: Volume | None) -> Volume | None:
    """1 where a mask is 0 and no way through such voxels leads to the border of its image.

    Returns:
        On the grid of the mask; None if there is no such voxel, or no mask.
    """
    if mask is None:
        return None
    inside = to_sitk((mask.data != 0).astype(np.uint8), mask.grid)
    hole = replace(mask, data=from_sitk(sitk.BinaryFillhole(inside) - inside)[0])
    return hole if hole.data.any() else None


def _any_along_others(mask: Bool[np.ndarray, "i j k"], axis: int) -> Bool[np.ndarray, " n"]:
    return np.any(mask, axis=tuple(other for other in range(3) if other != axis))

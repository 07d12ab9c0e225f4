"""How alike an image and a map are when the head is straightened first, as far as it is tilted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from nibabel.eulerangles import euler2mat

from ..geometry.resample import blurred, resample_to_grid
from ..geometry.spaces import Grid
from .looks import CELLS, axes_of, likeness, ranked

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Integer

    from .looks import Look

#: Rotations about the axes that are tried, in degrees: up to `MOST`, in steps that are halved from
#: the first to the last when none of them helps.
MOST, FIRST, LAST = 30.0, 12.0, 3.0


def straightened(
    look: Look, ranks: Float[np.ndarray, "20 24 20"], enough: float
) -> Float[np.ndarray, "20 24 20"]:
    """The map of an image along its own axes, tilted by up to 30° to make it most like another.

    Args:
        look: Of the image.
        ranks: The other map.
        enough: The search ends when it comes to this likeness.
    """
    best, reached = look.ranks, likeness(look.ranks, ranks)
    tiltable = _Tiltable(look)
    angles, step = np.zeros(3), FIRST
    while step >= LAST and reached < enough:
        tried = [angles + step * turn for turn in (*np.eye(3), *-np.eye(3))]
        tried = [turned for turned in tried if abs(turned).max() <= MOST]
        maps = [tiltable.ranks(turned) for turned in tried]
        found = [likeness(each, ranks) for each in maps]
        number = int(np.argmax(found))
        if found[number] > reached:
            best, reached, angles = maps[number], found[number], tried[number]
        else:
            step /= 2
    return best


class _Tiltable:
    """An image whose map is made along many axes: it is smoothed for that only once."""

    def __init__(self, look: Look) -> None:
        coarse = look.coarse
        self.threshold = look.threshold
        self.axes = axes_of(coarse.grid)
        self.points = coarse.grid.world(_ends(coarse.data > look.threshold))
        self.half = coarse.grid.spacing.mean() / 2
        cells_mm = np.array(look.extent_mm) / CELLS  # along right, anterior, superior
        along = abs(coarse.grid.directions.T @ self.axes).argmax(axis=1)
        self.image = blurred(coarse, cells_mm[along])

    def ranks(self, degrees: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "20 24 20"]:
        """The map along the image's own axes, rotated; of what is foreground along them."""
        if not len(self.points):
            return np.full(CELLS, np.nan, np.float32)
        axes = self.axes @ _rotation(degrees)
        points = self.points @ axes
        low, high = points.min(axis=0) - self.half, points.max(axis=0) + self.half
        centre = axes @ (low + high) / 2
        cells = Grid.from_spacing(CELLS, (high - low) / CELLS, axes, centre=centre)
        return ranked(resample_to_grid(self.image, cells, smooth=False), self.threshold)


def _ends(foreground: Bool[np.ndarray, "i j k"]) -> Integer[np.ndarray, "n 3"]:
    """The first and last voxel on each line: among them are the outermost ones of any direction."""
    lines = np.argwhere(foreground.any(axis=0))
    first = foreground.argmax(axis=0)
    last = len(foreground) - 1 - foreground[::-1].argmax(axis=0)
    ends = [np.column_stack([end[tuple(lines.T)], lines]) for end in (first, last)]
    return np.concatenate(ends)


def _rotation(degrees: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    x, y, z = np.deg2rad(degrees)
    return euler2mat(z, y, x)

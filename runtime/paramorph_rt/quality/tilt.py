"""How alike an image and a map are when the head is straightened first, as far as it is tilted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from nibabel.eulerangles import euler2mat

from .looks import axes_of, likeness, ranks_along

if TYPE_CHECKING:
    from jaxtyping import Float

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
    axes, angles, step = axes_of(look.coarse.grid), np.zeros(3), FIRST
    while step >= LAST and reached < enough:
        tried = [angles + step * turn for turn in (*np.eye(3), *-np.eye(3))]
        tried = [turned for turned in tried if abs(turned).max() <= MOST]
        maps = [ranks_along(look, axes @ _rotation(turned)) for turned in tried]
        found = [likeness(each, ranks) for each in maps]
        number = int(np.argmax(found))
        if found[number] > reached:
            best, reached, angles = maps[number], found[number], tried[number]
        else:
            step /= 2
    return best


def _rotation(degrees: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    x, y, z = np.deg2rad(degrees)
    return euler2mat(z, y, x)

"""The intensity of the background, such as air, or what a brain extraction left of the head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

#: Of the range from the background to the 99.5th percentile: what counts as the same intensity.
SAME = 0.01
#: Of the image's border that has one intensity, before that may be the background's.
LEAST_CONSTANT = 0.5
#: Of the voxels that are not background and may be darker: splines leave up to 0.01 so.
MOST_DARKER = 0.05
#: How much darker they may be, of the same range: those that splines leave reach 0.32.
DEEPEST = 0.5


def faces(data: Float[np.ndarray, "i j k"]) -> list[Float[np.ndarray, "a b"]]:
    """The first and last slice along each axis, as views.

    Not by np.take, which copies all of an array that is stored the other way round, as NIfTI is.
    """
    return [np.moveaxis(data, axis, 0)[end] for axis in range(3) for end in (0, -1)]


def background_of(data: Float[np.ndarray, "i j k"]) -> float:
    """The lowest intensity, or one that fills the border and has little below it.

    Images that were resampled by B-splines or windowed sinc fall a little below their background
    of 0 at bright edges; without this, all of that background would be foreground. Where much is
    darker, as around a CT that was masked with 0, the lowest intensity is the answer all the same.

    Args:
        data: Intensities in any unit, all finite.
    """
    lowest = float(data.min())
    border = np.concatenate([face.ravel() for face in faces(data)])
    level = float(np.median(border))
    if level == lowest:
        return lowest
    span = float(np.percentile(data[::3, ::3, ::3], 99.5)) - level
    is_constant = np.mean(abs(border - level) <= SAME * span) >= LEAST_CONSTANT
    if not (is_constant and SAME * span < level - lowest <= DEEPEST * span):
        return lowest
    darker = np.count_nonzero(data < level - SAME * span)
    brighter = np.count_nonzero(data > level + SAME * span)
    return level if darker <= MOST_DARKER * brighter else lowest

"""From one level's grid to another's over the same field of view: a matrix along each axis.

This takes a fraction of the time of ITK's smoothing and resampling, and here the grids' axes are
parallel always.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..geometry.resample import FWHM
from . import slabs

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..geometry.spaces import Grid

#: A weight that changes no float32.
NEGLIGIBLE = 1e-9


def rescaled(
    array: Float[np.ndarray, "*channels d h w"],
    grid: Grid,
    target: Grid,
    threads: int | None = None,
) -> Float[np.ndarray, "*channels a b c"]:
    """Sample an array linearly on another grid; on a coarser one, smoothed first.

    As `resample_to_grid` does it: the Gaussian takes the array's resolution to the target's.

    Args:
        array: On `grid`.
        grid: Of the array.
        target: Over the same field of view, with another number of voxels.
        threads: None uses all cores.

    Returns:
        float32, in C order; beyond the outermost voxels' centres their values go on.
    """
    result = np.ascontiguousarray(array, np.float32)
    for axis in (-1, -2, -3):  # the last first, on which neighbours are nearest in memory
        size, wanted = grid.shape[axis], target.shape[axis]
        if size != wanted:
            result = _along(result, axis, matrix(size, wanted), threads)
    return result


def _along(
    array: Float[np.ndarray, ...],
    axis: int,
    weights: Float[np.ndarray, "target size"],
    threads: int | None,
) -> Float[np.ndarray, ...]:
    """The product of a matrix with every line along an axis."""
    if not slabs.is_available():
        lines = np.moveaxis(array, axis, -1) @ weights.T
        return np.ascontiguousarray(np.moveaxis(lines, -1, axis))
    axis %= array.ndim
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    flat = array.reshape(math.prod(before), array.shape[axis], math.prod(after))
    return slabs.along_axis(flat, weights, threads).reshape(*before, len(weights), *after)


def matrix(size: int, target: int) -> Float[np.ndarray, "target size"]:
    """What each of `target` samples along an axis takes from its `size` voxels."""
    step = size / target
    samples = (np.arange(target) + 0.5) * step - 0.5
    # Rows of the identity, interpolated, are the weights of linear interpolation.
    weights = np.stack([np.interp(samples, range(size), row) for row in np.eye(size)], axis=1)
    variance = (step**2 - 1) / FWHM**2
    if variance > 0:
        weights = weights @ _gaussian(size, variance)
    return np.where(weights < NEGLIGIBLE, 0, weights).astype(np.float32)


def _gaussian(size: int, variance: float) -> Float[np.ndarray, "size size"]:
    """Smoothing by the discrete Gaussian, which has its variance below one voxel as well.

    It is what diffusion between neighbouring voxels makes of a voxel; nothing passes the border.
    Its modes are those of the discrete cosine transform (DCT-II).

    Source:
        Lindeberg, Scale-space for discrete signals (1990).
    """
    mode = np.arange(size)
    modes = np.cos(np.pi / size * np.outer(np.arange(size) + 0.5, mode)) * math.sqrt(2 / size)
    modes[:, 0] = math.sqrt(1 / size)
    rates = 2 * np.cos(np.pi / size * mode) - 2
    return (modes * np.exp(0.5 * variance * rates)) @ modes.T

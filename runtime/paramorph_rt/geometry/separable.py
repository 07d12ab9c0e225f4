"""Linear interpolation between grids whose axes are parallel, one axis after the other.

The network grid is parallel to the fixed image's, so this is how every displacement field reaches
its voxels, in a fraction of the time that any two grids need
(benchmarks/results/settled/resampling.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

    from .spaces import Grid

# Voxels by which axes may turn away from each other over the whole grid.
_PARALLEL = 1e-6
_SLAB = 16  # slices at a time, which stay in the cache


class AxisSamples(NamedTuple):
    """Where samples lie along one axis of the target.

    Attributes:
        axis: Of the source, to which it is parallel.
        at: Index along that axis of every sample.
    """

    axis: int
    at: Float[np.ndarray, " n"]


def samples_along_axes(source: Grid, target: Grid) -> list[AxisSamples] | None:
    """For each axis of the target, where in the source its voxels lie; None if it is oblique."""
    to_source = source.world_to_index @ target.affine
    matrix, offset = to_source[:3, :3], to_source[:3, 3]
    axes = np.abs(matrix).argmax(axis=0)
    along = np.zeros((3, 3), dtype=bool)
    along[axes, range(3)] = True
    strays = np.abs(np.where(along, 0, matrix)) @ target.shape
    if sorted(axes) != [0, 1, 2] or strays.max() > _PARALLEL or min(source.shape) < 2:
        return None
    return [
        AxisSamples(int(axis), matrix[axis, b] * np.arange(n) + offset[axis])
        for b, (axis, n) in enumerate(zip(axes, target.shape, strict=True))
    ]


def interpolate(
    values: Float[np.ndarray, "i j k"],
    samples: list[AxisSamples],
    out: Float[np.ndarray, "a b c"],
) -> None:
    """Fill `out` with samples of `values`; beyond its border, its border values.

    Args:
        values: float32.
        samples: Of the axes of `out`, from `samples_along_axes`.
        out: float32; fastest if its first axis is contiguous in memory.
    """
    at_i, at_j, at_k = (sample.at for sample in samples)
    turned = values.transpose([sample.axis for sample in samples])
    # The axis that is contiguous in memory first, as long as there are few voxels.
    planes = _along(_along(np.ascontiguousarray(turned.T), 2, at_i), 1, at_j)
    for start in range(0, len(at_k), _SLAB):
        part = slice(start, start + _SLAB)
        out[:, :, part] = _along(planes, 0, at_k[part]).T


def _along(
    values: Float[np.ndarray, "k j i"], axis: int, at: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "c b a"]:
    lower = np.clip(np.floor(at), 0, values.shape[axis] - 2).astype(np.intp)
    share = np.clip(at - lower, 0, 1).astype(np.float32)
    samples, above = values.take(lower, axis), values.take(lower + 1, axis)
    above -= samples
    above *= share.reshape([-1 if axis == other else 1 for other in range(3)])
    samples += above
    return samples

"""The iteration in compiled code, several times faster than as a graph of operators.

Here is said in which order the passes of `kernels.c` run.
"""

from __future__ import annotations

import ctypes
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .forces import LEAST_FORCE, LEAST_PRODUCT, LEAST_VARIANCE, RADIUS, gaussian_taps
from .slabs import Slabs, library

if TYPE_CHECKING:
    from jaxtyping import Float

    from .images import LevelImages
    from .settings import Level

    Volume = Float[np.ndarray, "d h w"]
    Field = Float[np.ndarray, "3 d h w"]
    Kernels = list[Float[np.ndarray, " taps"]]

_BOX = [np.full(2 * RADIUS + 1, 1 / (2 * RADIUS + 1), np.float32)] * 3


def iterate(
    images: LevelImages, level: Level, displacement_vox: Field, threads: int | None = None
) -> Field:
    """Take all steps of one level.

    Args:
        images: Both images on the level's grid.
        level: How many steps, how long and how smooth.
        displacement_vox: Where it starts, in voxels of that grid, fixed → moving.
        threads: None uses all cores.

    Returns:
        The refined displacement, in voxels.

    Raises:
        MissingDependencyError: The package was built without a C compiler.
    """
    with _Passes(images.fixed.shape, threads) as passes:
        return _iterate(passes, images, level, displacement_vox)


def _iterate(passes: _Passes, images: LevelImages, level: Level, start: Field) -> Field:
    relative = images.grid.spacing / level.spacing_mm
    # Central differences per millimetre, as steps in voxels.
    slopes = (0.5 / relative**2).astype(np.float32)
    force_taps = [gaussian_taps(level.force_sigma / size) for size in relative]
    field_taps = [gaussian_taps(level.field_sigma / size) for size in relative]
    fixed, features = images.fixed, images.features if level.features else None

    field = np.array(start, np.float32, order="C")
    force, moved, spare = (np.empty_like(field) for _ in range(3))
    warped, mean, square = (np.empty_like(fixed) for _ in range(3))
    passes.convolve(fixed, _BOX, spare[0], mean)
    passes.convolve(fixed * fixed, _BOX, spare[0], square)
    variance = np.maximum(square - mean * mean, 0)
    warped_features = None if features is None else np.empty_like(features.moving)
    for _ in range(level.iterations):
        passes.sample(images.moving[np.newaxis], field, warped[np.newaxis])
        passes.correlation_force(warped, fixed, mean, variance, slopes, force)
        if features is not None and warped_features is not None:
            passes.sample(features.moving, field, warped_features)
            weights = np.float32(level.features) * slopes
            passes.add_difference_force(warped_features, features.fixed, weights, force)
        if images.counts is not None:
            force *= images.counts
        for c in range(3):
            passes.convolve(force[c], force_taps, spare[0], force[c])
        longest = passes.longest(force, relative.astype(np.float32))
        passes.sample(field, force, moved, level.step / max(longest, LEAST_FORCE), add=True)
        for c in range(3):
            passes.convolve(moved[c], field_taps, spare[0], field[c])
    return field


class _Passes(Slabs):
    """The functions of `kernels.c` on volumes of one shape."""

    def __init__(self, shape: tuple[int, ...], threads: int | None) -> None:
        super().__init__(threads)
        self._library = library()
        self._shape = shape
        self._c_shape = (ctypes.c_int * 3)(*shape)

    def sample(
        self,
        volume: Float[np.ndarray, "c d h w"],
        shift: Field,
        out: Float[np.ndarray, "c d h w"],
        scale: float = 1.0,
        add: bool = False,
    ) -> None:
        channels, factor = len(volume), ctypes.c_float(scale)
        arguments = volume, channels, self._c_shape, shift, factor, int(add), out
        self.over(self._library.sample, self._shape[0], arguments)

    def convolve(self, volume: Volume, taps: Kernels, spare: Volume, out: Volume) -> None:
        """Along all axes; `out` may be `volume`."""
        depth, *planes = taps
        arguments: list[Any] = [volume, self._c_shape]
        for kernel in planes:
            arguments += [kernel, len(kernel) // 2]
        self.over(self._library.convolve_planes, self._shape[0], [*arguments, spare])
        arguments = [spare, self._c_shape, depth, len(depth) // 2, out]
        self.over(self._library.convolve_depth, self._shape[1], arguments)

    def correlation_force(
        self,
        warped: Volume,
        fixed: Volume,
        fixed_mean: Volume,
        fixed_variance: Volume,
        weights: Float[np.ndarray, " 3"],
        force: Field,
    ) -> None:
        least = ctypes.c_float(LEAST_PRODUCT), ctypes.c_float(LEAST_VARIANCE)
        volumes = warped, fixed, fixed_mean, fixed_variance
        arguments = *volumes, self._c_shape, RADIUS, *least, weights, force
        self.over(self._library.correlation_force, self._shape[0], arguments)

    def add_difference_force(
        self,
        warped: Float[np.ndarray, "c d h w"],
        fixed: Float[np.ndarray, "c d h w"],
        weights: Float[np.ndarray, " 3"],
        force: Field,
    ) -> None:
        arguments = warped, fixed, len(fixed), self._c_shape, weights, force
        self.over(self._library.add_difference_force, self._shape[0], arguments)

    def longest(self, field: Field, weights: Float[np.ndarray, " 3"]) -> float:
        """Length of the longest vector, whose components count by `weights`."""
        arguments = field, self._c_shape, weights
        return math.sqrt(max(self.over(self._library.longest, self._shape[0], arguments)))

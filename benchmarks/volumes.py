"""Made-up volumes, for what depends on their shape alone."""

from __future__ import annotations

import numpy as np


def smooth_volume(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """(i, j, k) in [0, 1], float32, with structure as large as anatomy has."""
    coarse = [max(2, n // 8) for n in shape]
    volume = np.random.default_rng(seed).random(coarse, np.float32)
    for axis, n in enumerate(shape):
        at = np.linspace(0, volume.shape[axis] - 1, n)
        volume = np.apply_along_axis(
            lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, volume
        )
    return volume.astype(np.float32)

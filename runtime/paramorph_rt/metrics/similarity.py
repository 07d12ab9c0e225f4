"""Likeness of two images on one grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


def ncc(
    fixed: Float[np.ndarray, "i j k"],
    warped: Float[np.ndarray, "i j k"],
    mask: Bool[np.ndarray, "i j k"],
) -> float | None:
    """Global normalised cross-correlation (Pearson's r) within a mask.

    Args:
        fixed: Intensities in any unit.
        warped: Intensities in any unit, on the same grid.
        mask: Where to compare; the fixed foreground, so that background does not raise it.

    Returns:
        -1 to 1; None where either image is constant within the mask.
    """
    first, second = (array[mask].astype(np.float64) for array in (fixed, warped))
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / norm) if norm > 0 else None

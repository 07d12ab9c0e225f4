"""Intensities mapped to [0, 1] by their percentiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..images.background import background_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..bundle import IntensitySpec


def normalise_for(
    array: Float[np.ndarray, "i j k"], intensity: IntensitySpec
) -> Float[np.ndarray, "i j k"]:
    """`normalise` by given percentiles, and as engines want it in memory."""
    percentiles = intensity.lower_percentile, intensity.upper_percentile
    return np.ascontiguousarray(normalise(array, *percentiles))


def normalise(
    array: Float[np.ndarray, "i j k"], lower_percentile: float, upper_percentile: float
) -> Float[np.ndarray, "i j k"]:
    """Map intensities linearly to [0, 1] and clip.

    The percentiles are taken over the voxels brighter than the background, so that its amount
    does not matter; 0 and 100 stand for background and maximum themselves.

    Args:
        array: Intensities in any unit; not constant.
        lower_percentile: Of 100; becomes 0.
        upper_percentile: Of 100; becomes 1.
    """
    return scaled(array, *intensity_range(array, lower_percentile, upper_percentile))


def intensity_range(
    array: Float[np.ndarray, "i j k"], lower_percentile: float, upper_percentile: float
) -> tuple[float, float]:
    """The intensities that `normalise` maps to 0 and 1."""
    values = array.ravel(order="K")  # in the order of memory, which is far faster
    lowest = background_of(array)
    bright = values[values > lowest]
    low = float(np.percentile(bright, lower_percentile)) if lower_percentile > 0 else lowest
    high = float(np.percentile(bright, upper_percentile))
    if high <= low:  # a nearly binary image: its percentiles coincide
        low, high = lowest, float(values.max())
    return low, high


def scaled(
    array: Float[np.ndarray, "*shape"], low: float, high: float
) -> Float[np.ndarray, "*shape"]:
    """Map intensities linearly so that `low` becomes 0 and `high` 1, and clip."""
    result = (array - np.float32(low)) / np.float32(high - low)
    return result.clip(0, 1, out=result).astype(np.float32, copy=False)

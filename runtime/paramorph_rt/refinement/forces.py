"""What both forms of an iteration share: window, least variances, Gaussian kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

RADIUS = 2  # of the cubes in which images are correlated: 5×5×5 voxels
# What keeps flat regions from driving anything; intensities lie in [0, 1].
LEAST_PRODUCT = 1e-6  # added to the product of both variances
LEAST_VARIANCE = 1e-4  # added to the covariance and the variance that a slope is fitted by
# Below it, steps shorten in proportion: where images match already, nothing is to move. The longest
# smoothed force of two brains is 0.2 to 0.5 on all levels.
LEAST_FORCE = 0.35
_CUT = 3.0  # standard deviations at which a Gaussian kernel ends


def gaussian_taps(sigma: float) -> Float[np.ndarray, " taps"]:
    """A Gaussian kernel with sum 1 and an odd number of taps; one tap for sigma 0.

    Args:
        sigma: Standard deviation, in voxels.
    """
    radius = int(_CUT * sigma + 0.5)
    if radius == 0:
        return np.ones(1, np.float32)
    offsets = np.arange(-radius, radius + 1)
    taps = np.exp(-0.5 * (offsets / sigma) ** 2)
    return (taps / taps.sum()).astype(np.float32)

"""Self-similarity: what an image looks like around each voxel, whatever its contrast is.

A descriptor of a voxel says how alike the patches beside it are to one another. Tissues that differ
in one contrast mostly differ in another one, too, so descriptors can be compared where intensities
cannot: T1 with T2, or prostates that two coils have shaded.

Source:
    Heinrich et al., Towards realtime multimodal fusion for image-guided interventions using
    self-similarities (2013): MIND-SSC.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..metrics.similarity import correlation_ratio, ncc
from ..steps.foreground import foreground_threshold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float

    Volume = Float[np.ndarray, "d h w"]

#: What two images of one contrast have at least, affinely aligned: their correlation, and how
#: linear their dependence is. For others, and for badly shaded ones, descriptors were the better
#: measure; for T1 brains the worse one (benchmarks/results/settled/similarity.md).
LEAST_NCC, LEAST_LINEARITY = 0.35, 0.75
#: The finest level on which that is judged; on finer ones all images correlate less.
JUDGED_MM = 1.0
_EVERY = (slice(None, None, 2),) * 3  # an eighth of the voxels suffices to judge contrasts
#: Levels finer than that compare intensities alone.
FINEST_MM = 1.5
#: Length of the descriptors beside 1 for the weight of features, and how smooth fields are kept
#: that compare them: standard deviation in voxels of a level.
WEIGHT, FIELD_SIGMA = 0.5, 1.5
_NEIGHBOURS = [offset for axis in np.eye(3, dtype=int) for offset in (axis, -axis)]
_RADIUS = 1  # of a patch
_RANGE = 1e3  # of a voxel's variance, around the mean over the image


def are_unlike(moving: Volume, fixed: Volume) -> bool:
    """Whether two images on one grid are of so different contrast that descriptors suit them."""
    moving, fixed = moving[_EVERY], fixed[_EVERY]
    inside = fixed > foreground_threshold(fixed)
    within_both = inside & (moving > foreground_threshold(moving))
    if not within_both.any():
        return False
    correlation = ncc(fixed[inside], moving[inside])
    linear = linearity(fixed[within_both], moving[within_both])
    return correlation is not None and (
        correlation < LEAST_NCC or (linear is not None and linear < LEAST_LINEARITY)
    )


def linearity(fixed: Float[np.ndarray, " n"], moving: Float[np.ndarray, " n"]) -> float | None:
    """How much of what two images tell of one another a rising straight line tells.

    Args:
        fixed: Intensities in any unit.
        moving: Intensities in any unit, of the same voxels.

    Returns:
        1 for images of one contrast, less where only some tissues are brighter in both, such as T1
        and FLAIR; below 0 where one is the other's inverse. None where either is constant.
    """
    correlation = ncc(fixed, moving)
    ratios = [correlation_ratio(fixed, moving), correlation_ratio(moving, fixed)]
    most = max((ratio for ratio in ratios if ratio), default=0.0)
    return correlation * abs(correlation) / most if correlation is not None and most > 0 else None


def descriptors(image: Volume) -> Float[np.ndarray, "12 d h w"]:
    """Of every voxel, between 0 and `WEIGHT`.

    Args:
        image: In any unit; another one gives the same.
    """
    distances = np.stack([_patch_distance(image, *pair) for pair in _pairs()])
    distances -= distances.min(axis=0)
    variance = distances.mean(axis=0)
    typical = max(float(variance.mean(dtype=np.float64)), float(np.finfo(np.float32).tiny))
    variance = variance.clip(typical / _RANGE, typical * _RANGE)
    return np.float32(WEIGHT) * np.exp(-distances / variance)


def _pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Neighbours of a voxel that lie diagonally from one another."""
    for first, second in combinations(_NEIGHBOURS, 2):
        if np.abs(first - second).max() == 1:
            yield first, second


def _patch_distance(image: Volume, first: np.ndarray, second: np.ndarray) -> Volume:
    """Mean squared difference of the patches around two neighbours of each voxel."""
    squares = (_beside(image, first) - _beside(image, second)) ** 2
    mean = sitk.Mean(sitk.GetImageFromArray(squares), [_RADIUS] * 3)
    return sitk.GetArrayFromImage(mean)


def _beside(image: Volume, offset: np.ndarray) -> Volume:
    """The neighbour of each voxel; beyond the border is the border."""
    for axis in np.flatnonzero(offset):
        places = np.arange(image.shape[axis]) + offset[axis]
        image = image.take(places.clip(0, image.shape[axis] - 1), axis)
    return image

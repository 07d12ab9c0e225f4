"""Likeness of two images on one grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

SSIM_WINDOW = 7  # voxels along each axis
_MARGIN = SSIM_WINDOW // 2
_SLAB = 8  # slices at a time, which stay in the cache


def ncc(fixed: Float[np.ndarray, " n"], warped: Float[np.ndarray, " n"]) -> float | None:
    """Global normalised cross-correlation (Pearson's r).

    Args:
        fixed: Intensities in any unit, `within` a mask: the fixed foreground, so that background
            does not raise it.
        warped: Intensities in any unit, of the same voxels.

    Returns:
        -1 to 1; None where either is constant.
    """
    first, second = (values.astype(np.float64) for values in (fixed, warped))
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / norm) if norm > 0 else None


def correlation_ratio(
    values: Float[np.ndarray, " n"], given: Float[np.ndarray, " n"], bins: int = 32
) -> float | None:
    """The share of one image's variance that another image explains, by any function of it.

    Never less than the square of the two images' correlation, but for the width of the bins, and
    equal to it where they depend on one another linearly.

    Args:
        values: Intensities in any unit.
        given: Intensities in any unit, of the same voxels.
        bins: Into which `given` is divided, with as many voxels in each.

    Returns:
        0 to 1; None where `values` are constant.

    Source:
        Roche et al., The correlation ratio as a new similarity measure for multimodal image
        registration (1998).
    """
    centred = values.astype(np.float64) - values.mean(dtype=np.float64)
    total = centred @ centred
    limits = np.unique(np.quantile(given, np.linspace(0, 1, bins + 1)[1:-1]))
    of_bin = np.digitize(given, limits)
    sums = np.bincount(of_bin, centred)
    return float((sums**2 / np.bincount(of_bin).clip(1)).sum() / total) if total > 0 else None


def mse(fixed: Float[np.ndarray, " n"], warped: Float[np.ndarray, " n"]) -> float:
    """Mean squared difference of the same voxels, in squared units."""
    return float(np.mean((fixed - warped) ** 2, dtype=np.float64))


def ssim(
    fixed: Float[np.ndarray, "i j k"],
    warped: Float[np.ndarray, "i j k"],
    mask: Bool[np.ndarray, "i j k"],
    data_range: float = 1.0,
) -> float | None:
    """Mean structural similarity within a mask.

    In cubes of 7 voxels that all count the same, with sample covariances and the usual constants
    0.01 and 0.03: scikit-image's `structural_similarity` as it is called without options. Only
    voxels whose cube lies in the image count.

    Args:
        fixed: Intensities.
        warped: Intensities of the same unit, on the same grid.
        mask: Where to compare; the fixed foreground, as two empty backgrounds are fully alike.
        data_range: Of the intensities; the constants are relative to it.

    Returns:
        -1 to 1; None if no voxel counts.

    Source:
        Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity
        (2004).
    """
    total, count = 0.0, 0
    for start in range(_MARGIN, mask.shape[2] - _MARGIN, _SLAB):
        stop = min(start + _SLAB, mask.shape[2] - _MARGIN)
        inside = mask[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN, start:stop]
        if not inside.any():
            continue
        around = slice(start - _MARGIN, stop + _MARGIN)
        # float64, as a variance is the small difference of two large values.
        first, second = (
            np.asarray(array[:, :, around], dtype=np.float64) for array in (fixed, warped)
        )
        total += float(_similarity(first, second, data_range)[inside].sum())
        count += int(np.count_nonzero(inside))
    return total / count if count else None


def _similarity(
    first: Float[np.ndarray, "i j k"], second: Float[np.ndarray, "i j k"], data_range: float
) -> Float[np.ndarray, "i-6 j-6 k-6"]:
    """Structural similarity of the cubes around each voxel that has a whole one."""
    voxels = SSIM_WINDOW**3
    sample = voxels / (voxels - 1)
    stable_mean, stable_variance = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_1, mean_2 = _window_mean(first), _window_mean(second)
    variances = sample * (_window_mean(first**2 + second**2) - mean_1**2 - mean_2**2)
    covariance = sample * (_window_mean(first * second) - mean_1 * mean_2)
    luminance = (2 * mean_1 * mean_2 + stable_mean) / (mean_1**2 + mean_2**2 + stable_mean)
    return luminance * (2 * covariance + stable_variance) / (variances + stable_variance)


def _window_mean(array: Float[np.ndarray, "i j k"]) -> Float[np.ndarray, "i-6 j-6 k-6"]:
    """Mean over the cube of 7 voxels around each voxel that has a whole one."""
    for axis in range(3):
        along = np.moveaxis(array, axis, 0)
        pairs = along[:-1] + along[1:]
        fours = pairs[:-2] + pairs[2:]
        array = np.moveaxis(fours[:-3] + pairs[4:-1] + along[6:], 0, axis)
    return array / SSIM_WINDOW**3


def within(
    mask: Bool[np.ndarray, "i j k"], array: Float[np.ndarray, "i j k"]
) -> Float[np.ndarray, " n"]:
    """The values where the mask is, axis i fastest, as volumes mostly lie in memory."""
    return np.asfortranarray(array).T[np.asfortranarray(mask).T]

"""Distance between the surfaces of label maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk

from ..threads import itk_threads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Bool, Float, Integer

    Box = tuple[np.ndarray, np.ndarray]  # first voxel, one past the last


class SurfaceDistances(NamedTuple):
    """How far apart the surfaces of one label are in two maps, in mm.

    A border voxel has one of its six neighbours outside the label; each is measured to the nearest
    border voxel of the other map.

    Attributes:
        assd_mm: Average symmetric surface distance: the mean over the border voxels of both maps
            together. This is MedPy's definition, not the mean of the two directed means.
        hd95_mm: 95th percentile Hausdorff distance: the larger of the two directed percentiles.
            This is MONAI's definition; MedPy takes the percentile of both directions together.
    """

    assd_mm: float
    hd95_mm: float


def surface_distances(
    fixed: Integer[np.ndarray, "i j k"],
    warped: Integer[np.ndarray, "i j k"],
    spacing: Float[np.ndarray, " 3"],
    labels: Iterable[int],
) -> dict[int, SurfaceDistances | None]:
    """Distances between the two surfaces of each label.

    Args:
        fixed: Label map.
        warped: Label map on the same grid.
        spacing: Millimetres along each array axis.
        labels: Which labels to measure.

    Returns:
        One entry per label; None where either map lacks it, as there is no surface to measure to.
    """
    fixed_boxes, warped_boxes = _boxes(fixed), _boxes(warped)
    result: dict[int, SurfaceDistances | None] = {}
    with itk_threads(1):  # starting threads takes longer than most of these small boxes
        for label in labels:
            if label not in fixed_boxes or label not in warped_boxes:
                result[label] = None
                continue
            window = _joint_window(fixed_boxes[label], warped_boxes[label])
            result[label] = _distances(fixed[window] == label, warped[window] == label, spacing)
    return result


def _distances(
    first: Bool[np.ndarray, "i j k"], second: Bool[np.ndarray, "i j k"], spacing: np.ndarray
) -> SurfaceDistances:
    # A voxel of background all around: the image's edge is a border, as in MedPy.
    borders = [_border(np.pad(mask, 1)) for mask in (first, second)]
    to_second = _distance_mm(borders[1], spacing)[borders[0]]
    to_first = _distance_mm(borders[0], spacing)[borders[1]]
    return SurfaceDistances(
        assd_mm=float(np.concatenate([to_second, to_first]).mean(dtype=np.float64)),
        hd95_mm=float(max(np.percentile(to_second, 95), np.percentile(to_first, 95))),
    )


def _border(mask: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    inside = mask.copy()
    for axis in range(3):
        for shift in (1, -1):
            inside &= np.roll(mask, shift, axis)  # the padding is background, so wrapping is safe
    return mask & ~inside


def _distance_mm(
    border: Bool[np.ndarray, "i j k"], spacing: np.ndarray
) -> Float[np.ndarray, "i j k"]:
    """Distance of every voxel to the nearest border voxel, 0 on the border itself."""
    image = sitk.GetImageFromArray(border.T.astype(np.uint8))
    image.SetSpacing(spacing.tolist())
    # Every border voxel has a neighbour off the border, so none counts as inside (negative).
    distance = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return sitk.GetArrayViewFromImage(distance).T


def _boxes(labels: Integer[np.ndarray, "i j k"]) -> dict[int, Box]:
    """Bounding box of every label, in one pass over the foreground."""
    index = np.nonzero(labels)
    values = labels[index]
    order = np.argsort(values, kind="stable")
    present, starts = np.unique(values[order], return_index=True)
    if not present.size:
        return {}
    lows, highs = [], []
    for along in index:
        ordered = along[order]
        lows.append(np.minimum.reduceat(ordered, starts))
        highs.append(np.maximum.reduceat(ordered, starts) + 1)
    boxes = zip(np.stack(lows, axis=1), np.stack(highs, axis=1), strict=True)
    return dict(zip(present.tolist(), boxes, strict=True))


def _joint_window(first: Box, second: Box) -> tuple[slice, slice, slice]:
    lo, hi = np.minimum(first[0], second[0]), np.maximum(first[1], second[1])
    i, j, k = (slice(int(a), int(b)) for a, b in zip(lo, hi, strict=True))
    return i, j, k

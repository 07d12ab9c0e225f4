"""Distance between the surfaces of label maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk

from ..system.threads import mapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Bool, Float, Integer

    Points = Integer[np.ndarray, "n 3"]  # voxel indices

NSD_TOLERANCE_MM = 1.0
# Spacings are rounded in headers; that must not decide whether 1 mm is within 1 mm.
_ROUNDING_MM = 1e-3


class SurfaceDistances(NamedTuple):
    """How far apart the surfaces of one label are in two maps.

    A border voxel has one of its six neighbours outside the label, or lies at the image's edge;
    each is measured to the nearest border voxel of the other map, between voxel centres.

    Attributes:
        assd_mm: Average symmetric surface distance: the mean over the border voxels of both maps
            together. This is MedPy's definition, not the mean of the two directed means.
        hd95_mm: 95th percentile Hausdorff distance: the larger of the two directed percentiles.
            This is MONAI's definition; MedPy takes the percentile of both directions together.
        nsd: Normalised surface distance: the share of the border voxels of both maps together
            that are within the tolerance, 0 to 1. This is MONAI's surface Dice; DeepMind's weighs
            each border voxel by its area.
    """

    assd_mm: float
    hd95_mm: float
    nsd: float


def surface_distances(
    fixed: Integer[np.ndarray, "i j k"],
    warped: Integer[np.ndarray, "i j k"],
    spacing: Float[np.ndarray, " 3"],
    labels: Iterable[int],
    tolerance_mm: float = NSD_TOLERANCE_MM,
) -> dict[int, SurfaceDistances | None]:
    """Distances between the two surfaces of each label.

    On as many threads as ITK has (`threads.mapped`), a label on each.

    Args:
        fixed: Label map.
        warped: Label map on the same grid.
        spacing: Millimetres along each array axis.
        labels: Which labels to measure.
        tolerance_mm: Of the normalised surface distance.

    Returns:
        One entry per label; None where either map lacks it, as there is no surface to measure to.
    """
    labels = list(labels)
    in_fixed, in_warped = _borders(fixed), _borders(warped)
    common = [label for label in labels if label in in_fixed and label in in_warped]
    common.sort(key=lambda label: -_extent(in_fixed[label], in_warped[label]))  # evens threads out
    distances = mapped(
        lambda label: _distances(in_fixed[label], in_warped[label], spacing, tolerance_mm), common
    )
    measured = dict(zip(common, distances, strict=True))
    return {label: measured.get(label) for label in labels}


def _distances(
    first: Points, second: Points, spacing: np.ndarray, tolerance_mm: float
) -> SurfaceDistances:
    corner = np.minimum(first.min(axis=0), second.min(axis=0))
    shape = np.maximum(first.max(axis=0), second.max(axis=0)) - corner + 1
    first, second = first - corner, second - corner
    to_second = _distance_mm(second, shape, spacing)[tuple(first.T)]
    to_first = _distance_mm(first, shape, spacing)[tuple(second.T)]
    both = np.concatenate([to_second, to_first])
    return SurfaceDistances(
        assd_mm=float(both.mean(dtype=np.float64)),
        hd95_mm=float(max(np.percentile(to_second, 95), np.percentile(to_first, 95))),
        nsd=float(np.mean(both <= tolerance_mm + _ROUNDING_MM)),
    )


def _distance_mm(
    points: Points, shape: np.ndarray, spacing: np.ndarray
) -> Float[np.ndarray, "i j k"]:
    """Distance of every voxel of a box to the nearest border voxel, 0 on the border itself."""
    # With a voxel around them all, every border voxel has a neighbour that is none; ITK would take
    # those without for an inside, and their distance for negative.
    mask = np.zeros((shape + 2)[::-1], dtype=np.uint8)
    mask[tuple(points.T[::-1] + 1)] = 1
    image = sitk.GetImageFromArray(mask)
    image.SetSpacing(spacing.tolist())
    maurer = sitk.SignedMaurerDistanceMapImageFilter()
    maurer.SquaredDistanceOff()
    maurer.UseImageSpacingOn()
    maurer.SetNumberOfThreads(1)  # starting threads takes longer than most of these small boxes
    distance = sitk.GetArrayFromImage(maurer.Execute(image))
    return distance[1:-1, 1:-1, 1:-1].T


def _borders(labels: Integer[np.ndarray, "i j k"]) -> dict[int, Points]:
    """The border voxels of every label."""
    on_border = (labels != 0) & ~_within(labels)
    index = np.nonzero(on_border)
    values = labels[index]
    order = np.argsort(values, kind="stable")
    present, starts = np.unique(values[order], return_index=True)
    if not present.size:
        return {}
    points = np.stack(index, axis=1)[order]
    return dict(zip(present.tolist(), np.split(points, starts[1:]), strict=True))


def _within(labels: Integer[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """Voxels whose six neighbours are of their own label."""
    within = np.zeros(labels.shape, dtype=bool)
    centre = (slice(1, -1),) * 3
    within[centre] = True
    for axis in range(3):
        for shifted in (slice(None, -2), slice(2, None)):
            neighbour = (*centre[:axis], shifted, *centre[axis + 1 :])
            within[centre] &= labels[neighbour] == labels[centre]
    return within


def _extent(first: Points, second: Points) -> int:
    """Voxels of the box around both."""
    low = np.minimum(first.min(axis=0), second.min(axis=0))
    high = np.maximum(first.max(axis=0), second.max(axis=0))
    return int(np.prod(high - low + 1))

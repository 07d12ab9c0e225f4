"""Dice overlap and volumes of label maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jaxtyping import Integer

# Above this, counting by value would need more memory than the image.
_COUNTABLE = 2**20


def present_labels(labels: Integer[np.ndarray, "i j k"]) -> set[int]:
    """All labels of a map besides the background 0."""
    return set(label_counts(labels))


def label_counts(labels: Integer[np.ndarray, "*shape"]) -> dict[int, int]:
    """Voxels of every label of a map besides the background 0, in order of the labels."""
    values = labels.ravel(order="K")  # in the order of memory, which is far faster
    values = values[values != 0]
    if values.size and values.min() > 0 and values.max() < _COUNTABLE:
        counts = np.bincount(values)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    labels_present, counts = np.unique(values, return_counts=True)
    return dict(zip(labels_present.tolist(), counts.tolist(), strict=True))


def dice(
    fixed: Integer[np.ndarray, "i j k"], warped: Integer[np.ndarray, "i j k"]
) -> dict[int, float]:
    """Dice of every label present in either map; 0 for a label absent from one of them.

    ``2 |A ∩ B| / (|A| + |B|)``, without the smoothing term that makes absent labels score 1.
    """
    in_fixed, in_warped = label_counts(fixed), label_counts(warped)
    in_both = label_counts(np.where(fixed == warped, fixed, 0))
    return {
        label: 2 * in_both.get(label, 0) / (in_fixed.get(label, 0) + in_warped.get(label, 0))
        for label in sorted(in_fixed.keys() | in_warped.keys())
    }


def mean_dice(
    fixed: Integer[np.ndarray, "i j k"],
    warped: Integer[np.ndarray, "i j k"],
    moving: Integer[np.ndarray, "l m n"],
) -> float | None:
    """Mean Dice of the labels that the fixed and the moving map have in common; None without any.

    A label that the warp lost counts as 0.
    """
    return mean_over(dice(fixed, warped), present_labels(fixed) & present_labels(moving))


def mean_over(values: Mapping[int, float | None], labels: Iterable[int]) -> float | None:
    """Mean of a metric over some labels, without those that have no value; None if none has."""
    known = [value for label in labels if (value := values.get(label)) is not None]
    return float(np.mean(known)) if known else None

"""Dice overlap of label maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from jaxtyping import Integer


def present_labels(labels: Integer[np.ndarray, "i j k"]) -> set[int]:
    """All labels of a map besides the background 0."""
    return {int(value) for value in np.unique(labels)} - {0}


def dice(
    fixed: Integer[np.ndarray, "i j k"], warped: Integer[np.ndarray, "i j k"]
) -> dict[int, float]:
    """Dice of every label present in either map; 0 for a label absent from one of them.

    ``2 |A ∩ B| / (|A| + |B|)``, without the smoothing term that makes absent labels score 1.
    """
    in_fixed, in_warped = _counts(fixed), _counts(warped)
    in_both = _counts(fixed[fixed == warped])
    return {
        label: 2 * in_both.get(label, 0) / (in_fixed.get(label, 0) + in_warped.get(label, 0))
        for label in sorted(in_fixed.keys() | in_warped.keys())
    }


def mean_over(values: Mapping[int, float | None], labels: Iterable[int]) -> float | None:
    """Mean of a metric over some labels, without those that have no value; None if none has."""
    found = [value for label in labels if (value := values.get(label)) is not None]
    return float(np.mean(found)) if found else None


def _counts(labels: Integer[np.ndarray, "*shape"]) -> dict[int, int]:
    values, counts = np.unique(labels[labels != 0], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))

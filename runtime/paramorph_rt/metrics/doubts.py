"""What in the metrics of a registration makes its result doubtful, a sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .definitions import metric_of

if TYPE_CHECKING:
    from collections.abc import Mapping

STAGES = ("before", "affine", "after")
# A change smaller than what the third digit shows is none.
LEAST_FALL = 0.0005
# How much coarser the network's grid may be than in training: up to a quarter is what heads of
# different size ask for.
MOST_GROWTH = 1.25
# Dice of a label that overlapped so that it can be lost: less is chance, or a few voxels.
LEAST_OVERLAP = 0.1
MOST_NAMED = 12


def doubts_of(metrics: Mapping[str, Any]) -> list[str]:
    """Sentences for `warnings`: what a reader should know before trusting the result.

    Args:
        metrics: Content of metrics.json; ``label_names`` in it give labels their names.
    """
    found = []
    if (growth := (metrics.get("network_grid") or {}).get("spacing_growth", 1.0)) > MOST_GROWTH:
        found.append(
            f"network: ran {growth:.2f} times coarser than it was trained, to fit the image; small "
            "structures may stay where they were."
        )
    for key in ("ncc", "dice"):
        table = metrics.get(key) or {}
        before, after = (mean_of(table.get(stage)) for stage in ("affine", "after"))
        if before is not None and after is not None and after < before - LEAST_FALL:
            found.append(
                f"network: made the images less alike: {metric_of(key).title} fell from "
                f"{before:.3f} after the affine to {after:.3f}; look at them, or use the affine "
                "alone."
            )
    if lost := _lost_labels(metrics.get("dice") or {}):
        named = [_named(label, metrics) for label in lost[:MOST_NAMED]]
        which = ", ".join(named) + (", …" if len(lost) > MOST_NAMED else "")
        found.append(f"labels: nothing overlaps any more, though it did before, of {which}.")
    return found


def mean_of(entry: object) -> float | None:
    """The number that stands for a stage: its own, or the mean over its labels."""
    value: Any = entry.get("mean") if isinstance(entry, dict) else entry
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else None


def _named(label: str, metrics: Mapping[str, Any]) -> str:
    name = metrics.get("label_names", {}).get(label)
    return f"{label} ({name})" if name else label


def _lost_labels(dice: Mapping[str, Any]) -> list[str]:
    """Labels that overlapped well once and do not at all any more."""
    first, second, after = (dice.get(stage, {}).get("labels", {}) for stage in STAGES)
    had = {
        label
        for stage in (first, second)
        for label, value in stage.items()
        if value is not None and value >= LEAST_OVERLAP
    }
    return sorted((label for label in had if after.get(label) == 0), key=int)

"""What in the metrics of a registration makes its result doubtful."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..quality.flags import Flag
from ..quality.score import LEAST_SCORE
from .definitions import STAGES, metric_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# A change smaller than what the third digit shows is none.
LEAST_FALL = 0.0005
# The same of NCC where features or descriptors pull as well, to which it may give way: hippocampi
# that are right lose up to 0.09.
LEAST_FALL_BESIDE_FEATURES = 0.1
# How much coarser the network's grid may be than in training: up to a quarter is what heads of
# different size ask for.
MOST_GROWTH = 1.25
# Dice of a label that overlapped so that it can be lost: less is chance, or a few voxels.
LEAST_OVERLAP = 0.1
MOST_NAMED = 12


def flags_of(metrics: Mapping[str, Any]) -> list[Flag]:
    """What a reader should know of a result before trusting it.

    Args:
        metrics: Content of metrics.json; ``label_names`` in it give labels their names.
    """
    return [*_of_grid(metrics), *_of_falls(metrics), *_of_labels(metrics), *_of_score(metrics)]


def _of_grid(metrics: Mapping[str, Any]) -> Iterator[Flag]:
    growth = (metrics.get("network_grid") or {}).get("spacing_growth", 1.0)
    if growth > MOST_GROWTH:
        yield Flag(
            "coarse_network",
            "pair",
            f"network: ran {growth:.2f} times coarser than it was trained, to fit the image; small "
            "structures may stay where they were.",
            growth,
            MOST_GROWTH,
        )


def _of_falls(metrics: Mapping[str, Any]) -> Iterator[Flag]:
    for key in ("ncc", "dice"):
        table = metrics.get(key) or {}
        before, after = (mean_of(table.get(stage)) for stage in ("affine", "after"))
        if before is None or after is None:
            continue
        if key == "ncc" and before <= 0:  # of inverted contrasts, which it falls with
            continue
        if after < before - (_least_fall_of_ncc(metrics) if key == "ncc" else LEAST_FALL):
            yield Flag(
                f"{key}_fell",
                "pair",
                f"network: made the images less alike: {metric_of(key).title} fell from "
                f"{before:.3f} after the affine to {after:.3f}; look at them, or use the affine "
                "alone.",
                after,
                before,
            )


def _least_fall_of_ncc(metrics: Mapping[str, Any]) -> float:
    refinement = metrics.get("refinement") or {}
    beside = refinement.get("features") or refinement.get("metric") == "mind"
    return LEAST_FALL_BESIDE_FEATURES if beside else LEAST_FALL


def _of_labels(metrics: Mapping[str, Any]) -> Iterator[Flag]:
    if lost := _lost_labels(metrics.get("dice") or {}):
        named = [_named(label, metrics) for label in lost[:MOST_NAMED]]
        which = ", ".join(named) + (", …" if len(lost) > MOST_NAMED else "")
        yield Flag(
            "labels_lost",
            "pair",
            f"labels: nothing overlaps any more, though it did before, of {which}.",
            len(lost),
            0,
        )


def _of_score(metrics: Mapping[str, Any]) -> Iterator[Flag]:
    score = metrics.get("quality", {}).get("score")
    if score is not None and score < LEAST_SCORE:
        yield Flag(
            "score",
            "pair",
            f"result: by all that was measured, a rater would hardly accept it (score {score:.2f}, "
            f"doubtful below {LEAST_SCORE:g}); look at the images.",
            score,
            LEAST_SCORE,
        )


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

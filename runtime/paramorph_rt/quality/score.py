"""One number for a result: how probable it is that a rater would accept it."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np

from ..steps.affine import agreement
from ..steps.foreground import foreground_box

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..geometry.field import DisplacementField
    from ..images.volume import Volume
    from .flags import Flag

#: Flags of the checks before that weigh on the score, whatever the model.
DOUBTS = frozenset(
    ("content", "noise", "background", "size", "orientation", "overlap", "unlike"),
)
#: Below it a result is doubtful; `benchmarks/results/quality.md` shows what that catches.
LEAST_SCORE = 0.5


def evidence_of(
    metrics: Mapping[str, Any],
    fixed: Volume,
    warped: Volume,
    by_model: DisplacementField,
    flags: Iterable[Flag] = (),
) -> dict[str, float | None]:
    """What the score is made from, besides nothing else.

    Args:
        metrics: Of the images and of the field, as far as they are measured.
        fixed: Fixed image, masked.
        warped: Moving image on its grid.
        by_model: Field without the affine.
        flags: Of the checks before.

    Returns:
        "uncertainty_coefficient": of the fixed image given the warped one; "overlap":
        Dice of both foregrounds; "ncc": after; "roughness": standard deviation of log J; "folds":
        percent of the volume; "reach": 99th percentile of the displacement without the affine, of
        the size of the fixed foreground; "doubts": how many of `DOUBTS` are among the flags.
    """
    low, high = foreground_box(fixed)
    size_mm = float(np.prod(np.subtract(high, low) * fixed.grid.spacing) ** (1 / 3))
    lengths = np.linalg.norm(by_model.vectors_mm[::2, ::2, ::2], axis=-1)
    constant = warped.data.min() == warped.data.max()
    coefficient, overlap = (0.0, 0.0) if constant else agreement(warped, fixed)
    evidence = {
        "uncertainty_coefficient": coefficient,
        "overlap": overlap,
        "ncc": metrics["ncc"]["after"],
        "roughness": metrics["sd_log_jacobian"],
        "folds": metrics["nondiffeomorphic_volume_percent"],
        "reach": float(np.percentile(lengths, 99)) / size_mm,
        "doubts": len(DOUBTS & {flag.name for flag in flags}),
    }
    return {
        name: None if value is None else round(float(value), 6) for name, value in evidence.items()
    }


def score_of(evidence: Mapping[str, float | None]) -> float:
    """0 to 1: logistic in the evidence, each part cut to the range in which it was calibrated.

    The coefficients are those of score.json, which `benchmarks/quality.py` writes; a part that
    could not be measured counts as its worst.
    """
    model = coefficients()
    total = model["intercept"]
    for name, part in model["parts"].items():
        value = evidence.get(name)
        low, high = part["range"]
        worst = low if part["weight"] > 0 else high
        total += part["weight"] * min(max(worst if value is None else value, low), high)
    return round(1 / (1 + math.exp(-total)), 4)


@lru_cache(maxsize=1)
def coefficients() -> dict[str, Any]:
    """Content of score.json."""
    text = files(__package__).joinpath("score.json").read_text(encoding="utf-8")
    return dict(json.loads(text))

"""The last station of a registration: what makes its result doubtful."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ..metrics.doubts import flags_of
from ..quality.flags import Flag
from ..quality.score import score_of
from .affine import FLAGS as LOGGED_BY_AFFINE
from .foreground import share_outside

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..geometry.spaces import Grid
    from ..images.volume import Volume
    from ..quality.choice import Choice

log = logging.getLogger(__name__)

# Share of the fixed foreground that an output grid may lack without a warning.
LEAST_LOSS = 0.001


def cut_off(fixed: Volume, grid: Grid) -> Iterator[Flag]:
    """What results on a grid lack of the fixed image, if it is worth a warning."""
    share = share_outside(fixed, grid)
    if share >= LEAST_LOSS:
        yield Flag(
            "cut_off",
            "fixed",
            f"{100 * share:.1f} % of what {fixed.name} shows lies outside the output grid, and "
            "results end there; choose a grid that covers it, such as --output-grid fixed.",
            share,
            LEAST_LOSS,
        )


def judge(
    metrics: dict[str, Any],
    evidence: Mapping[str, float | None],
    flags: Sequence[Flag],
    choice: Choice,
) -> None:
    """Add the quality to the metrics, and warn of all that makes the result doubtful.

    Args:
        metrics: Of the result.
        evidence: That the score is made from.
        flags: All that the checks of the pair raised.
        choice: Of the model, which may make up for what does not suit it.
    """
    metrics["quality"] = {
        "score": score_of(evidence),
        "evidence": evidence,
        "choice": choice.as_metrics(),
    }
    after = flags_of(metrics)
    doubts = [*flags, *choice.doubts, *after]
    metrics["quality"]["flags"] = [f.as_metrics() for f in (*flags, *choice.flags, *after)]
    metrics["warnings"] = [flag.sentence for flag in doubts]
    for flag in doubts:
        if flag.name not in LOGGED_BY_AFFINE:
            log.warning("%s", flag.sentence)

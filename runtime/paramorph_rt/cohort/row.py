"""A pair of a cohort as a line of its summary."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pairs import Pair


@dataclass(frozen=True)
class Row:
    """A pair, what came of it, and the numbers of its metrics.json by their path in it."""

    pair: Pair
    status: str
    note: str
    warnings: tuple[str, ...]
    metrics: dict[str, float | None]
    folder: str  # relative to the cohort's, as is the report
    report: str | None
    # By metric of `summary.OF_LABELS`.
    labels: dict[str, dict[str, float | None]] = field(default_factory=dict)
    label_names: dict[str, str] = field(default_factory=dict)

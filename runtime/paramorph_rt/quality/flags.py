"""A flag: one named thing that looks wrong, with the number that says so and the limit it broke."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Flag:
    """One thing that looks wrong.

    Attributes:
        name: Of the check, such as "contrast".
        of: "moving", "fixed", or "pair", which is also what came of it.
        sentence: For people: what was expected, what came, what to do.
        value: What was measured, if it is one number.
        limit: What it should not have passed.
    """

    name: str
    of: str
    sentence: str
    value: float | None = None
    limit: float | None = None

    def as_metrics(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "name": self.name,
            "of": self.of,
            "value": None if self.value is None else round(float(self.value), 4),
            "limit": None if self.limit is None else round(float(self.limit), 4),
            "sentence": self.sentence,
        }

"""The rows of a long run, on disk as they come, so that a run that was stopped can go on."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import record
from pairs import BenchmarkError


class Rows(list[dict[str, Any]]):
    """The rows of a long run; the result file has each as soon as it is measured.

    Args:
        name: Of the result file.
        content: What the file says besides its rows.
        packages: Besides `record.PACKAGES`, whose versions matter.
        resume: Begin with the rows of the file that is there, except those that failed.

    Raises:
        BenchmarkError: The file that is there was measured with other threads or models.
    """

    def __init__(
        self, name: str, content: dict[str, Any], packages: Sequence[str] = (), resume: bool = False
    ) -> None:
        super().__init__()
        self._name, self._content, self._packages = name, dict(content), packages
        self.path = record.RESULTS / f"{name}.json"
        if resume and self.path.is_file():
            self._take(json.loads(self.path.read_text(encoding="utf-8")))

    def _take(self, before: Mapping[str, Any]) -> None:
        for key in ("threads", "models"):
            if before.get(key) != self._content.get(key):
                raise BenchmarkError(
                    f"{self.path.name}: expected a result of the same {key} to go on with "
                    f"({self._content.get(key)}), got one of {before.get(key)}; measure all again, "
                    "without --resume."
                )
        self.extend(row for row in before["rows"] if "error" not in row)
        self._content["resumed_from"] = sorted({*before.get("resumed_from", ()), before["commit"]})

    def without(self, **keys: Any) -> bool:
        """Whether no row has these values."""
        return not any(keys.items() <= row.items() for row in self)

    def note(self, row: dict[str, Any]) -> None:
        """Print a row and write all."""
        self.append(row)
        print(json.dumps(row, ensure_ascii=False), file=sys.stderr, flush=True)
        self.write()

    def write(self, **more: Any) -> dict[str, Any]:
        """Write the result; returns it as it is read back."""
        record.write_result(self._name, {**self._content, **more, "rows": self}, self._packages)
        return json.loads(self.path.read_text(encoding="utf-8"))

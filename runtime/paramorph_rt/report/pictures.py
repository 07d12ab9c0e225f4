"""Which pictures are wanted of a registration, and what draws them into its folder."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..results import outputs
from . import require_packages, write_figures, write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..registration import RegistrationResult
    from . import Source

# Matplotlib's style belongs to the whole process.
_drawing = threading.Lock()


@dataclass(frozen=True)
class Pictures:
    """What is drawn of each registered pair.

    Attributes:
        report: One HTML page.
        solid: That page with an interactive 3-D view.
        figures: PNG files for papers.
    """

    report: bool = False
    solid: bool = False
    figures: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """What appears in the folder of results."""
        wanted = {outputs.REPORT: self.report or self.solid, outputs.FIGURES: self.figures}
        return tuple(name for name, asked in wanted.items() if asked)

    def check(self) -> None:
        """Check, before there is a result, that it can be drawn.

        Raises:
            MissingDependencyError: The extra "report" is not installed.
        """
        if self.files:
            require_packages(figures=self.figures)

    def of(
        self,
        result: RegistrationResult,
        moving: Source,
        fixed: Source,
        moving_labels: Source | None,
        fixed_labels: Source | None,
        parameters: Mapping[str, object],
    ) -> dict[str, Callable[[Path], None]]:
        """What draws a result into a folder, by the name of its stage; nothing is drawn yet.

        Args:
            result: What was found.
            moving: Path or volume that was registered, and so the following.
            fixed: The same.
            moving_labels: The same.
            fixed_labels: The same.
            parameters: What the registration was asked for, as the page shows it.
        """
        inputs = moving, fixed, moving_labels, fixed_labels

        def report(folder: Path) -> None:
            write_report(
                folder / outputs.REPORT,
                result,
                *inputs,
                parameters=parameters,
                solid=self.solid,
            )

        def figures(folder: Path) -> None:
            with _drawing:
                write_figures(folder / outputs.FIGURES, result, *inputs)

        draw = {outputs.REPORT: ("report", report), outputs.FIGURES: ("figures", figures)}
        return dict(draw[name] for name in self.files)

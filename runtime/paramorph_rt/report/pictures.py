"""The pictures of a registration that its options request, and what draws them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..results import outputs
from . import require_packages, write_figures, write_report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from ..request import Options
    from ..result import RegistrationResult
    from ..steps.load import Sources

# Matplotlib's style belongs to the whole process.
_drawing = threading.Lock()


def files_of(options: Options) -> tuple[str, ...]:
    """What is drawn into the folder of results, by its plain names."""
    requested = {outputs.REPORT: options.report or options.report_3d}
    requested[outputs.FIGURES] = options.figures
    return tuple(name for name, is_requested in requested.items() if is_requested)


def check(options: Options) -> None:
    """Check, before there is a result, that it can be drawn.

    Raises:
        MissingDependencyError: The extra "report" is not installed.
    """
    if files_of(options):
        require_packages(figures=options.figures)


def drawings(
    options: Options,
    result: RegistrationResult,
    sources: Sources,
    parameters: Mapping[str, object],
) -> dict[str, Callable[[Path], None]]:
    """What draws a result into a folder, by the name of its stage; nothing is drawn yet.

    Args:
        options: Say what is drawn.
        result: Of the registration.
        sources: That were registered.
        parameters: Of the registration, as the page shows them.
    """

    images = sources.moving, sources.fixed, sources.moving_labels, sources.fixed_labels

    def report(folder: Path) -> None:
        write_report(
            folder / outputs.REPORT,
            result,
            *images,
            parameters=parameters,
            solid=options.report_3d,
        )

    def figures(folder: Path) -> None:
        with _drawing:
            write_figures(folder / outputs.FIGURES, result, *images)

    draw = {outputs.REPORT: ("report", report), outputs.FIGURES: ("figures", figures)}
    return dict(draw[name] for name in files_of(options))

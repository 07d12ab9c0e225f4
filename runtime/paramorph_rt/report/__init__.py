"""Pictures of a registration: one HTML page per pair, and PNG figures for papers.

They show what the registration found and measure nothing of their own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import OutputError
from ..system.optional import import_optional
from ..system.staging import staged_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..result import RegistrationResult
    from ..steps.load import Source


SLICES = 11  # per plane

# Module → package that brings it.
_PAGE = {"jinja2": "Jinja2", "PIL": "Pillow", "contourpy": "contourpy"}
_FIGURES = {"matplotlib": "matplotlib"}


def require_packages(*, figures: bool = False) -> None:
    """Check that all is installed, before any work is done.

    Args:
        figures: For `write_figures` too.

    Raises:
        MissingDependencyError: The extra "report" is not installed.
    """
    if figures:
        os.environ.pop(
            "MPLBACKEND", None
        )  # of windows, which there are none; others stop matplotlib
    for module, package in (_PAGE | _FIGURES if figures else _PAGE).items():
        import_optional(module, "report", f"reports and figures need {package}")


def write_report(  # a public function; keywords vary the page
    path: str | Path,
    result: RegistrationResult,
    moving: Source,
    fixed: Source,
    moving_labels: Source | None = None,
    fixed_labels: Source | None = None,
    *,
    label_names: Mapping[int, str] | None = None,
    parameters: Mapping[str, object] | None = None,
    slices: int = SLICES,
    solid: bool = False,
) -> None:
    """Write one self-contained HTML page about a registration.

    Args:
        path: Of the page; replaced if it exists.
        result: What was found.
        moving: Path or volume that was registered, and so the following.
        fixed: Slices are cut along its axes.
        moving_labels: Drawn as contours before, after the affine, and after all.
        fixed_labels: Drawn as contours beside them.
        label_names: Shown beside the label numbers, as are those in the result's metrics.
        parameters: Of the registration, shown as they are.
        slices: Per plane.
        solid: Add an interactive 3-D view, with three volumes of 8 bits in the page; it then has
            several megabytes more.

    Raises:
        MissingDependencyError: The extra "report" is not installed.
        VolumeError: An input cannot be read.
        OutputError: The page cannot be written.
    """
    require_packages()
    from .page import render
    from .slices import load_pair
    from .solid import solid_of

    pair = load_pair(result, moving, fixed, moving_labels, fixed_labels)
    text = render(
        pair,
        count=slices,
        label_names={int(n): name for n, name in result.metrics.get("label_names", {}).items()}
        | dict(label_names or {}),
        parameters=parameters or {},
        solid=solid_of(pair) if solid else None,
    )
    with staged_file(Path(path)) as staging:
        staging.write_text(text, encoding="utf-8")


def write_figures(
    folder: str | Path,
    result: RegistrationResult,
    moving: Source,
    fixed: Source,
    moving_labels: Source | None = None,
    fixed_labels: Source | None = None,
) -> None:
    """Write PNG figures for papers, 300 dots per inch, through the middle of the fixed foreground.

    They are `registration.png`, `checkerboard.png`, `difference.png`, `grid.png`, `jacobian.png`,
    and with labels `contours.png`.

    Args:
        folder: Created if it does not exist; figures of an earlier run are replaced.
        result: What was found.
        moving: Path or volume that was registered, and so the following.
        fixed: Slices are cut along its axes.
        moving_labels: Drawn as contours.
        fixed_labels: Drawn as contours over them.

    Raises:
        MissingDependencyError: The extra "report" is not installed.
        VolumeError: An input cannot be read.
        OutputError: The figures cannot be written.
    """
    require_packages(figures=True)
    from .figures import draw_figures
    from .slices import load_pair

    pair = load_pair(result, moving, fixed, moving_labels, fixed_labels)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(
            f"{folder}: expected a folder for the figures, got {err.strerror or err}; "
            "choose another."
        ) from err
    for name, picture in draw_figures(pair):
        with staged_file(folder / name) as staging:
            staging.write_bytes(picture)

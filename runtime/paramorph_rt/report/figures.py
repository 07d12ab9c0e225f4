"""PNG figures of a registration for papers: three planes at one scale, with rulers and units."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..metrics.definitions import STAGES
from . import drawing
from .slices import STAGE_TITLES, Pair, Plane, cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.axes import Axes

DPI = 300
_WIDTH_INCH = 7.2  # two columns of most journals
_RULER_MM = 20
_SQUARE_MM = 20.0  # of the checkerboard
_GAP_MM = 4.0
_HEAD_INCH, _FOOT_INCH = 0.22, 0.5
_STYLE: Any = {"font.family": "sans-serif", "font.size": 8}
_LINE_WIDTH = 0.5  # points
_HALO = [withStroke(linewidth=1.6, foreground="black")]  # letters stand out on light pictures too


def draw_figures(pair: Pair) -> Iterator[tuple[str, bytes]]:
    """Names and PNG files of all figures that the pair has data for."""
    planes = cut(pair, 1)
    stages = [stage for stage in STAGE_TITLES if stage in planes[0].labels]
    figures = {
        "registration.png": lambda: _stages(planes),
        "checkerboard.png": lambda: _checkerboard(planes),
        "difference.png": lambda: _difference(planes),
        "grid.png": lambda: _grid(planes),
        "jacobian.png": lambda: _jacobian(planes),
    }
    if stages:
        figures["contours.png"] = lambda: _contours(planes, stages)
    for name, draw in figures.items():
        buffer = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            FigureCanvasAgg(draw()).print_figure(buffer, dpi=DPI, format="png")
        yield name, buffer.getvalue()


def _stages(planes: list[Plane]) -> Figure:
    """Fixed and moving image at each stage, with the outline of the fixed one."""
    figure, axes = _panels([[plane] * len(STAGE_TITLES) for plane in planes])
    for plane, row in zip(planes, axes, strict=True):
        for stage, ax in zip(STAGE_TITLES, row, strict=True):
            _image(ax, plane, drawing.grey(plane.images[stage][..., 0]))
            _lines(ax, plane, drawing.outline_lines(plane.outline[..., 0]), drawing.FIXED_COLOUR)
    _titles(axes, list(STAGE_TITLES.values()))
    return figure


def _contours(planes: list[Plane], stages: Sequence[str]) -> Figure:
    """Label contours of the moving image at each stage, under those of the fixed one."""
    figure, axes = _panels([[plane] * len(stages) for plane in planes])
    for plane, row in zip(planes, axes, strict=True):
        for stage, ax in zip(stages, row, strict=True):
            _image(ax, plane, drawing.grey(plane.images[stage][..., 0]))
            shown = {stage: drawing.MOVING_COLOUR, "fixed": drawing.FIXED_COLOUR}
            for source, colour in shown.items():
                if source in plane.labels:
                    _label_contours(ax, plane, plane.labels[source][..., 0], colour)
    _titles(axes, [STAGE_TITLES[stage] for stage in stages])
    return figure


def _checkerboard(planes: list[Plane]) -> Figure:
    """Squares of the fixed image and of the moving image at each stage."""
    figure, axes = _panels([[plane] * len(STAGES) for plane in planes])
    for plane, row in zip(planes, axes, strict=True):
        columns, rows = (
            (np.arange(plane.grid.shape[axis]) + 0.5) * plane.grid.spacing[axis] // _SQUARE_MM
            for axis in (0, 1)
        )
        odd = np.add.outer(columns, rows) % 2 == 1
        for stage, ax in zip(STAGES, row, strict=True):
            mixed = np.where(odd, plane.images["fixed"][..., 0], plane.images[stage][..., 0])
            _image(ax, plane, drawing.grey(mixed))
    _titles(axes, [f"{STAGE_TITLES[stage]} / fixed" for stage in STAGES])
    return figure


def _difference(planes: list[Plane]) -> Figure:
    figure, axes = _panels([[plane] * len(STAGES) for plane in planes], bar=True)
    for plane, row in zip(planes, axes, strict=True):
        fixed = plane.images["fixed"][..., 0]
        for stage, ax in zip(STAGES, row, strict=True):
            _image(ax, plane, drawing.difference(plane.images[stage][..., 0], fixed))
    _titles(axes, [f"{STAGE_TITLES[stage]} − fixed" for stage in STAGES])
    limit = drawing.DIFFERENCE_RANGE
    _bar(
        figure,
        drawing.DIFFERENCE_COLOURS,
        Normalize(-limit, limit),
        "difference of intensity (parts of the display window)",
    )
    return figure


def _grid(planes: list[Plane]) -> Figure:
    figure, axes = _panels([planes])
    for plane, ax in zip(planes, axes[0], strict=True):
        _image(ax, plane, drawing.grey(plane.images["after"][..., 0]))
        _lines(ax, plane, drawing.lattice_lines(plane.lattice[..., 0]), "white")
    _titles(axes, [f"{plane.name}, {drawing.GRID_STEP_MM:g} mm squares" for plane in planes])
    return figure


def _jacobian(planes: list[Plane]) -> Figure:
    figure, axes = _panels([planes], bar=True)
    for plane, ax in zip(planes, axes[0], strict=True):
        _image(ax, plane, drawing.jacobian(plane.jacobian[..., 0]))
        _lines(ax, plane, drawing.outline_lines(plane.outline[..., 0]), "black")
    _titles(axes, [plane.name for plane in planes])
    limit = drawing.JACOBIAN_OCTAVES
    bar = _bar(
        figure,
        drawing.JACOBIAN_COLOURS,
        Normalize(-limit, limit),
        "Jacobian determinant (moving volume ÷ fixed volume); folds in yellow",
    )
    bar.set_xticks([-2, -1, 0, 1, 2], ["¼", "½", "1", "2", "4"])
    return figure


def _panels(rows: list[list[Plane]], *, bar: bool = False) -> tuple[Figure, list[list[Axes]]]:
    """Axes in millimetres, all at one scale, with letters and a ruler; room for a bar below."""
    widths = [max(row[c].size_mm[0] for row in rows) for c in range(len(rows[0]))]
    heights = [max(plane.size_mm[1] for plane in row) for row in rows]
    inch = _WIDTH_INCH / (sum(widths) + _GAP_MM * (len(widths) - 1))
    foot = _FOOT_INCH if bar else 0.02
    height = inch * (sum(heights) + _GAP_MM * (len(heights) - 1)) + _HEAD_INCH + foot
    figure = Figure(figsize=(_WIDTH_INCH, height), facecolor="white")
    axes: list[list[Axes]] = []
    top = height - _HEAD_INCH
    for row, tall in zip(rows, heights, strict=True):
        top -= inch * tall
        left = 0.0
        axes.append([])
        for plane, wide in zip(row, widths, strict=True):
            width_mm, height_mm = plane.size_mm
            box = (
                left / _WIDTH_INCH,
                top / height,
                inch * wide / _WIDTH_INCH,
                inch * height_mm / height,
            )
            ax = figure.add_axes(box, facecolor="black")
            start = (width_mm - wide) / 2
            ax.set(xlim=(start, start + wide), ylim=(height_mm, 0), xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            if not axes[-1] or row[0] is not plane:
                _letters(ax, plane)
            axes[-1].append(ax)
            left += inch * (wide + _GAP_MM)
        top -= inch * _GAP_MM
    _ruler(axes[0][0])
    return figure, axes


def _letters(ax: Axes, plane: Plane) -> None:
    left, right, top, bottom = plane.edges
    style: dict[str, Any] = {
        "color": "white",
        "fontsize": 7,
        "transform": ax.transAxes,
        "path_effects": _HALO,
    }
    ax.text(0.02, 0.5, left, ha="left", va="center", **style)
    ax.text(0.98, 0.5, right, ha="right", va="center", **style)
    ax.text(0.5, 0.98, top, ha="center", va="top", **style)
    ax.text(0.5, 0.02, bottom, ha="center", va="bottom", **style)


def _ruler(ax: Axes) -> None:
    right, bottom = ax.get_xlim()[1] - 6, ax.get_ylim()[0] - 6
    style: dict[str, Any] = {"color": "white", "path_effects": _HALO}
    ax.plot([right - _RULER_MM, right], [bottom, bottom], linewidth=1.2, **style)
    ax.text(right, bottom - 2, f"{_RULER_MM} mm", fontsize=6, ha="right", va="bottom", **style)


def _titles(axes: list[list[Axes]], titles: Sequence[str]) -> None:
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=8, pad=3)


def _image(ax: Axes, plane: Plane, picture: np.ndarray) -> None:
    width, height = plane.size_mm
    colours: Any = {"cmap": "gray", "vmin": 0, "vmax": 255} if picture.ndim == 2 else {}
    limits = {"xlim": ax.get_xlim(), "ylim": ax.get_ylim()}
    ax.imshow(picture, extent=(0, width, height, 0), interpolation="bilinear", **colours)
    ax.set(**limits, aspect="auto")


def _label_contours(ax: Axes, plane: Plane, labels: np.ndarray, colour: str) -> None:
    for lines in drawing.label_lines(labels).values():
        _lines(ax, plane, lines, colour)


def _lines(ax: Axes, plane: Plane, lines: Sequence[np.ndarray], colour: str) -> None:
    """Draw lines given in voxels from the centre of the first one."""
    in_mm = [(line + 0.5) * plane.grid.spacing[:2] for line in lines]
    ax.add_collection(LineCollection(in_mm, colors=colour, linewidths=_LINE_WIDTH), autolim=False)


def _bar(figure: Figure, colours: Sequence[str], norm: Normalize, title: str) -> Axes:
    height = figure.get_size_inches()[1]
    ax = figure.add_axes((0.2, 0.3 / height, 0.6, 0.1 / height))
    mapping = matplotlib.cm.ScalarMappable(norm, LinearSegmentedColormap.from_list("", colours))
    figure.colorbar(mapping, cax=ax, orientation="horizontal")
    ax.tick_params(labelsize=7, length=2, pad=1)
    ax.set_xlabel(title, fontsize=7, labelpad=2)
    return ax

"""Plots of results, never drawn by hand: accuracy against smoothness and seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import matplotlib

from record import Result, Row

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, OTHERS = "#1f5fa8", "0.35"
STILL = 1e-4  # SDlogJ of a field that is affine, but for roundings
# Where a point's name may stand: offset in points, and which end of the name is there.
NAME_PLACES = [
    (dx, dy, side)
    for dy in (-3, 14, -20, 28, -34, 42, -48)
    for dx, side in ((9, "left"), (-9, "right"))
]
OFFSET = {"textcoords": "offset points"}


def accuracy_plot(result: Result, path: Path) -> None:
    """Dice, or the error of a known field, against SDlogJ and against seconds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5), sharey=True, layout="constrained")
    rows = [row for row in result["rows"] if "error" not in row]
    key, label = "dice", "mean Dice"
    if any("error_mean_mm" in row for row in rows):
        key, label = "error_mean_mm", "mean error, mm"
    left.set(xlabel="SDlogJ", ylabel=label)
    right.set(xlabel="seconds per pair", xscale="log")
    right.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    _scatter(left, rows, "sd_log_jacobian", key, mean)
    _scatter(right, rows, "seconds", key, median)
    save(figure, path)


def _scatter(
    ax: Axes, rows: Sequence[Row], across: str, key: str, middle_of: Callable[[list], float]
) -> None:
    """A large point per method, a small one per pair; what does not deform in words alone."""
    names, still = [], []
    for title in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == title]
        if all(row["sd_log_jacobian"] < STILL for row in mine):
            still.append(f"{title}: {mean(row[key] for row in mine):.3f}")
            continue
        each = [row[across] for row in mine], [row[key] for row in mine]
        middle = middle_of(each[0]), mean(each[1])
        color = OURS if title.startswith("ParaMorph") else OTHERS
        ax.scatter(*each, s=9, color=color, alpha=0.5)
        ax.scatter(*middle, s=70, color=color)
        names.append((title, middle, color))
    ax.margins(x=0.2, y=0.15)
    plain(ax)
    ax.text(0.99, 0.02, "\n".join(still), transform=ax.transAxes, ha="right", color=OTHERS)
    if names:
        _write_names(ax, names)


def _write_names(ax: Axes, names: Iterable[tuple[str, tuple[float, float], str]]) -> None:
    """Name each point where the name covers no point and no other name."""
    ax.figure.canvas.draw()  # positions are known only then
    marks = np.concatenate([drawn.get_offsets() for drawn in ax.collections])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in ax.transData.transform(marks)]
    for title, point, color in names:
        for dx, dy, side in NAME_PLACES:
            line = {"arrowstyle": "-", "color": color, "alpha": 0.4}
            line["relpos"] = (float(side == "right"), 0.5)
            text = ax.annotate(
                title, point, (dx, dy), **OFFSET, ha=side, color=color, arrowprops=line
            )
            text.update_positions(ax.figure.canvas.get_renderer())
            box = Text.get_window_extent(text)  # without its line
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:  # no room anywhere: better over something than missing
            ax.annotate(title, point, NAME_PLACES[0][:2], **OFFSET, color=color)
        taken.append(box)


def plain(ax: Axes) -> None:
    """A faint grid, no box."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)


def save(figure: Figure, path: Path, **options: Any) -> None:
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "charts"}  # small, repeatable
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, **options)
    plt.close(figure)

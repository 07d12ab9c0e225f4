"""Plots of results, never drawn by hand: accuracy against smoothness and seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING

import matplotlib

from record import Result, Row
from tables import grouped

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, OTHERS = "#1f5fa8", "0.35"
MARKERS = "osD^v<>Pp*XhH"
STILL = 1e-4  # SDlogJ of a field that is affine, but for roundings


def accuracy_plot(result: Result, path: Path) -> None:
    """Dice, or the error of a known field, against SDlogJ and against seconds."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(14, 5), sharey=True, layout="constrained")
    rows = [row for row in result["rows"] if "error" not in row]
    key, label = "dice", "mean Dice"
    if any("error_mean_mm" in row for row in rows):
        key, label = "error_mean_mm", "mean error, mm"
    left.set(xlabel="SDlogJ", ylabel=label)
    right.set(xlabel="seconds per pair", xscale="log")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    right.xaxis.set_minor_formatter(NullFormatter())
    _scatter(left, rows, "sd_log_jacobian", key, mean)
    _scatter(right, rows, "seconds", key, median)
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    save(figure, path)


def _scatter(
    ax: Axes, rows: Sequence[Row], across: str, key: str, middle_of: Callable[[list], float]
) -> None:
    """A large point per method, a small one per pair; what does not deform is a line."""
    markers = cycle(MARKERS)
    for (title,), mine in grouped(rows, "method").items():
        value = mean(row[key] for row in mine)
        if all(row["sd_log_jacobian"] < STILL for row in mine):
            ax.axhline(value, color=OTHERS, linestyle=":", label=f"{title}: {value:.3f}")
            continue
        style = {"marker": next(markers), "color": OTHERS}
        if title.startswith("ParaMorph"):
            style["color"] = OURS
        across_pairs = [row[across] for row in mine]
        ax.scatter(across_pairs, [row[key] for row in mine], s=9, alpha=0.5, **style)
        ax.scatter(middle_of(across_pairs), value, s=70, label=title, **style)
    plain(ax)


def plain(ax: Axes) -> None:
    """No frame, a faint grid behind."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)


def save(figure: Figure, path: Path, **options: object) -> None:
    """Write an SVG that is small and the same for the same result, and close the figure."""
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "charts"}
    figure.savefig(path, metadata={"Date": None}, **options)
    plt.close(figure)

"""Tables and pictures made from results, never typed."""

from __future__ import annotations

from statistics import mean, median
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

from tables import failures, markdown_table, measured, origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

ACCURACY_COLUMNS = (
    ("method", "method", ""),
    ("Dice", "dice", ".3f"),
    ("HD95, mm", "hd95_mm", ".2f"),
    ("ASSD, mm", "assd_mm", ".2f"),
    ("mean error, mm", "error_mean_mm", ".2f"),
    ("95th percentile", "error_p95_mm", ".2f"),
    ("largest", "error_max_mm", ".2f"),
    ("SDlogJ", "sd_log_jacobian", ".3f"),
    ("folds, %", "nonpositive_jacobian_percent", ".4f"),
    ("non-diffeomorphic volume, %", "nondiffeomorphic_volume_percent", ".4f"),
    ("seconds", "seconds", ".1f"),
    ("of these network", "network_seconds", ".1f"),
    ("time / greedy", "seconds_over_greedy", ".2g"),
    ("time / SyN", "seconds_over_syn", ".2g"),
    ("peak MB", "peak_mb", ".0f"),
)
KNOWN_FIELD = (
    "The fixed image is the moving one, deformed by smooth noise (Gaussian of 14 mm, vectors of "
    "3 mm on average) and an affine, with noise in the intensities. Errors are distances from "
    "where the known field leads, over the voxels of the brain.\n\n"
)
STILL = 1e-4  # SDlogJ of a field that is affine, but for roundings
# Where a point's name may stand: offset in points, and which end of the name is there.
NAME_PLACES = (
    (9, -3, "left"),
    (-9, -3, "right"),
    *(
        (dx, dy, side)
        for dy in (14, -20, 28, -34, 42, -48)
        for dx, side in ((9, "left"), (-9, "right"))
    ),
)


def accuracy_table(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of one result of accuracy.py."""
    summary = [{"method": title, **entry} for title, entry in result["summary"].items()]
    columns = measured(ACCURACY_COLUMNS, summary)
    known = any(key == "error_mean_mm" for _, key, _ in columns)
    return (
        f"# {name}\n\n"
        f"Written by `benchmarks/accuracy.py` from `{name}.json`: "
        + (f"{result['set']}; " if result.get("set") else "")
        + f"{result['pairs']} pairs, {result['threads']} threads; {origin(result)}.\n\n"
        "Means over the pairs; seconds, their ratio and memory are of medians. Seconds are those "
        "of the registration alone, affine included, without reading files and loading models "
        "(greedy's include its own files, between its steps); memory is the whole process's, "
        "packages and images included. Folds are voxels whose Jacobian determinant is not positive "
        "by central differences; the non-diffeomorphic volume sees between voxels, too (Liu et al. "
        "2024).\n\n"
        + (KNOWN_FIELD if known else "")
        + markdown_table(summary, columns)
        + failures(result["rows"], "method", "pair")
        + f"\n![Accuracy against smoothness, and against seconds]({name}.svg)\n"
    )


def accuracy_picture(result: Mapping[str, Any], path: Path) -> None:
    """Dice, or the error of a known field, against SDlogJ and against seconds.

    A large point per method, a small one per pair; in words alone what does not deform, far below.
    """
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "accuracy"}  # small, repeatable
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5), sharey=True, layout="constrained")
    rows = [row for row in result["rows"] if "error" not in row]
    key, label = "dice", "mean Dice"
    if any("error_mean_mm" in row for row in rows):
        key, label = "error_mean_mm", "mean error, mm"
    left.set(xlabel="SDlogJ", ylabel=label)
    right.set(xlabel="seconds per pair", xscale="log")
    right.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    for ax, across, middle_of in (
        (left, "sd_log_jacobian", mean),
        (right, "seconds", median),
    ):
        names, still = [], []
        for title in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == title]
            if all(row["sd_log_jacobian"] < STILL for row in mine):
                still.append(f"{title}: {mean(row[key] for row in mine):.3f}")
                continue
            each = [row[across] for row in mine], [row[key] for row in mine]
            middle = middle_of(each[0]), mean(each[1])
            color = "#1f5fa8" if title.startswith("ParaMorph") else "0.35"
            ax.scatter(*each, s=9, color=color, alpha=0.5)
            ax.scatter(*middle, s=70, color=color)
            names.append((title, middle, color))
        ax.margins(x=0.2, y=0.15)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
        ax.text(0.99, 0.02, "\n".join(still), transform=ax.transAxes, ha="right", color="0.35")
        if names:
            _write_names(ax, names)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)


def _write_names(ax: Axes, names: Iterable[tuple[str, tuple[float, float], str]]) -> None:
    """Name each point where the name covers no point and no other name."""
    ax.figure.canvas.draw()  # positions are known only then
    marks = np.concatenate([drawn.get_offsets() for drawn in ax.collections])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in ax.transData.transform(marks)]
    for title, point, color in names:
        for dx, dy, side in NAME_PLACES:
            text = ax.annotate(
                *(title, point, (dx, dy)),
                textcoords="offset points",
                ha=side,
                color=color,
                arrowprops={
                    "arrowstyle": "-",
                    "color": color,
                    "alpha": 0.4,
                    "relpos": (float(side == "right"), 0.5),
                },
            )
            text.update_positions(ax.figure.canvas.get_renderer())
            box = Text.get_window_extent(text)  # without its line
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        else:  # no room anywhere: better over something than missing
            ax.annotate(title, point, NAME_PLACES[0][:2], textcoords="offset points", color=color)
        taken.append(box)

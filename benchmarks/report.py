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

from tables import markdown_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

ACCURACY_COLUMNS = (
    ("method", "method", ""),
    ("Dice", "dice", ".3f"),
    ("HD95, mm", "hd95_mm", ".2f"),
    ("ASSD, mm", "assd_mm", ".2f"),
    ("NCC", "ncc", ".3f"),
    ("folds, %", "nonpositive_jacobian_percent", ".3f"),
    ("SDlogJ", "sd_log_jacobian", ".3f"),
    ("seconds", "seconds", ".1f"),
    ("of these network", "network_seconds", ".1f"),
    ("time / SyN", "seconds_over_syn", ".2g"),
    ("peak MB", "peak_mb", ".0f"),
)
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
    failures = [
        f"- {row['method']}, {row['pair']}: {row['error']}\n"
        for row in result["rows"]
        if "error" in row
    ]
    versions = ", ".join(f"{p} {v}" for p, v in result["versions"].items() if v)
    return (
        f"# {name}\n\n"
        f"Written by `benchmarks/accuracy.py` from `{name}.json`: {result['pairs']} pairs, "
        f"{result['threads']} threads of {result['processor']}, commit {result['commit']}; "
        f"{versions}.\n\n"
        "Means over the pairs; seconds, their ratio and memory are of medians. Seconds are those "
        "of the registration alone, affine included, without reading files and loading models; "
        "memory is the whole process's, packages and images included.\n\n"
        + markdown_table(summary, ACCURACY_COLUMNS)
        + ("\nFailed, and left out above:\n\n" + "".join(failures) if failures else "")
        + f"\n![Dice against seconds]({name}.svg)\n"
    )


def accuracy_picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw Dice against seconds: a large point per method, a small one per pair."""
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "accuracy"}  # small, repeatable
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    names = []
    for title in dict.fromkeys(row["method"] for row in rows if "error" not in row):
        mine = [row for row in rows if row["method"] == title and "error" not in row]
        each = [row["seconds"] for row in mine], [row["dice"] for row in mine]
        middle = median(each[0]), mean(each[1])
        if middle[0] == 0:  # nowhere on a logarithmic axis
            note = f"{title}: {middle[1]:.3f}"
            ax.text(0.99, 0.02, note, transform=ax.transAxes, ha="right", color="0.35")
            continue
        color = "#1f5fa8" if title.startswith("ParaMorph") else "0.35"
        ax.scatter(*each, s=9, color=color, alpha=0.5)
        ax.scatter(*middle, s=70, color=color)
        names.append((title, middle, color))
    ax.set(xscale="log", xlabel="seconds per pair", ylabel="mean Dice")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
    ax.margins(x=0.15, y=0.15)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
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

"""Plots of results, never drawn by hand: accuracy, seconds, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import matplotlib

from record import Result, Row
from tables import count_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter
from matplotlib.transforms import Bbox

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS, OTHERS = "#1f5fa8", "0.55"
PYTORCH = ("pytorch", "transcription")
STAGE_COLOURS = {
    "start-up": "#d9d9d9",
    "load": "#c7a9d6",
    "affine": "#8fc1e3",
    "preprocess": "#5b9bd0",
    "network": "#1f5fa8",
    "register": "#7d7d7d",  # a peer's affine and all that follows, which it does not part
    "warp": "#f2b35e",
    "metrics": "#d9783c",
    "save": "#7a9e5b",
}
STILL = 1e-4  # SDlogJ of a field that is affine, but for roundings
# Where a point's name may stand: offset in points, and which end of the name is there.
NAME_PLACES = [
    (dx, dy, side)
    for dy in (-3, 14, -20, 28, -34, 42, -48)
    for dx, side in ((9, "left"), (-9, "right"))
]
OFFSET = {"textcoords": "offset points"}


def stages_of(rows: Iterable[Result]) -> list[str]:
    """All stages of some rows, in the order in which they are done; others come last."""
    stages = dict.fromkeys(stage for row in rows for stage in row["stages"])
    known = [stage for stage in STAGE_COLOURS if stage in stages]
    return known + [stage for stage in stages if stage not in STAGE_COLOURS]


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
        color = OURS if title.startswith("ParaMorph") else "0.35"
        ax.scatter(*each, s=9, color=color, alpha=0.5)
        ax.scatter(*middle, s=70, color=color)
        names.append((title, middle, color))
    ax.margins(x=0.2, y=0.15)
    plain(ax)
    ax.text(0.99, 0.02, "\n".join(still), transform=ax.transAxes, ha="right", color="0.35")
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


def latency_plot(result: Result, path: Path) -> None:
    """Seconds (90th percentile as a whisker) and memory, a bar per contender."""
    networks = result["networks"]
    heights = [len([row for row in n["rows"] if "error" not in row]) for n in networks]
    figure, grid = plt.subplots(
        len(networks),
        2,
        figsize=(10, 1.1 * len(networks) + 0.36 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (left, right), network in zip(grid, networks, strict=True):
        rows = [row for row in network["rows"] if "error" not in row]
        names = [f"{row['contender']}, {count_of(row['threads'], 'thread')}" for row in rows]
        colours = [OTHERS if row["contender"] in PYTORCH else OURS for row in rows]
        seconds = [row["median_seconds"] for row in rows]
        late = [row["p90_seconds"] - row["median_seconds"] for row in rows]
        whiskers = [[0] * len(rows), late]
        drawn = left.barh(names, seconds, xerr=whiskers, color=colours, error_kw={"ecolor": "0.2"})
        notes = [f"{s:.2f} s, {r['times_faster']:.1f}×" for s, r in zip(seconds, rows, strict=True)]
        left.bar_label(drawn, notes, padding=4, color="0.2")
        drawn = right.barh(names, [row["peak_mb"] / 1e3 for row in rows], color=colours)
        right.bar_label(drawn, fmt="%.1f", padding=4, color="0.2")
        shape = "×".join(map(str, network["shape"]))
        _bars(left, f"{network['name']}, {shape}: seconds", 1.35)
        _bars(right, "peak memory, GB", 1.15)
        right.set_yticklabels([])
    save(figure, path)


def stages_plot(result: Result, path: Path) -> None:
    """Seconds of each job as a bar of its stages; ours once more, larger."""
    rows = result["summary"]
    ours = [row for row in rows if row["ours"]]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 1.6 + 0.5 * len(rows)), layout="constrained"
    )
    for ax, shown, title in ((left, rows, "all, seconds"), (right, ours, "ParaMorph, seconds")):
        names = [row["job"].replace(", ", ",\n") for row in shown]
        ends = [0.0] * len(shown)
        for stage in stages_of(rows):
            lengths = [row["stages"].get(stage, 0.0) for row in shown]
            ax.barh(names, lengths, left=ends, color=_colour(stage), label=stage)
            ends = [end + length for end, length in zip(ends, lengths, strict=True)]
        for name, end in zip(names, ends, strict=True):
            ax.text(end, name, f" {end:.1f}", va="center", color="0.2")
        _bars(ax, title, 1.12)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    save(figure, path)


def growth_plot(result: Result, path: Path) -> None:
    """Seconds above, memory below: against volume size, threads and number of pairs."""
    figure, grid = plt.subplots(2, 3, figsize=(12, 6), layout="constrained", sharex="col")
    sizes, threads, pairs = (result[key] for key in ("sizes", "threads", "pairs"))
    megavoxels = [row["size"] ** 3 / 1e6 for row in sizes]
    stages = stages_of(sizes)
    lengths = [[row["stages"][stage] for row in sizes] for stage in stages]
    colours = [_colour(stage) for stage in stages]
    grid[0, 0].stackplot(megavoxels, lengths, labels=stages, colors=colours)
    figure.legend(loc="outside upper left", ncols=len(stages), fontsize=9, frameon=False)
    _line(grid[1, 0], megavoxels, (row["peak_mb"] / 1e3 for row in sizes))
    for column, (rows, key) in enumerate(((threads, "threads"), (pairs, "pairs")), start=1):
        at = [row[key] for row in rows]
        _line(grid[0, column], at, (row["seconds"] for row in rows))
        _line(grid[1, column], at, (row["peak_mb"] / 1e3 for row in rows))
        grid[1, column].set_xticks(at)
    ends = f"{sizes[0]['size']}³ … {sizes[-1]['size']}³"
    titles = (f"million voxels of each volume, {ends}", "threads", "pairs, one after the other")
    for (upper, lower), title in zip(grid.T, titles, strict=True):
        lower.set_xlabel(title)
        for ax, label in ((upper, "seconds"), (lower, "peak memory, GB")):
            ax.set(ylabel=label, ylim=(0, 1.1 * ax.get_ylim()[1]))
            plain(ax)
    save(figure, path)


def _colour(stage: str) -> str:
    return STAGE_COLOURS.get(stage, "0.3")


def _line(ax: Axes, at: Sequence[float], values: Iterable[float]) -> None:
    ax.plot(at, list(values), "o-", color=OURS)


def _bars(ax: Axes, title: str, room: float) -> None:
    """Read from above, with room for what is written beside the bars."""
    ax.invert_yaxis()
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlim(0, ax.get_xlim()[1] * room)
    plain(ax, "x")


def plain(ax: Axes, lines: str = "both") -> None:
    """A faint grid, no box."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis=lines, alpha=0.25)
    ax.set_axisbelow(True)


def save(figure: Figure, path: Path, **options: Any) -> None:
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "charts"}  # small, repeatable
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, metadata=metadata, **options)
    plt.close(figure)

"""Pictures of what things cost: seconds and memory, as bars and lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

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


def stages_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All stages of some rows, in the order in which they are done; others come last."""
    found = dict.fromkeys(stage for row in rows for stage in row["stages"])
    return [stage for stage in STAGE_COLOURS if stage in found] + [
        stage for stage in found if stage not in STAGE_COLOURS
    ]


def latency_picture(result: Mapping[str, Any], path: Path) -> None:
    """Seconds (90th percentile as a whisker) and memory, a bar per contender."""
    networks = result["networks"]
    heights = [len([row for row in n["rows"] if "error" not in row]) for n in networks]
    figure, grid = plt.subplots(
        *(len(networks), 2),
        figsize=(10, 1.1 * len(networks) + 0.36 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for (left, right), network in zip(grid, networks, strict=True):
        rows = [row for row in network["rows"] if "error" not in row]
        names = [f"{row['contender']}, {_count(row['threads'], 'thread')}" for row in rows]
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
    _save(figure, path)


def stages_picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Seconds of each job as a bar of its stages; ours once more, larger.

    Args:
        rows: `job`, `seconds`, `stages` (seconds by name), `ours`.
        path: SVG or PNG.
    """
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
    _save(figure, path)


def growth_picture(result: Mapping[str, Any], path: Path) -> None:
    """Seconds above, memory below: against volume size, threads and number of pairs."""
    figure, grid = plt.subplots(2, 3, figsize=(12, 6), layout="constrained", sharex="col")
    sizes, threads, pairs = (result[key] for key in ("sizes", "threads", "pairs"))
    megavoxels = [row["size"] ** 3 / 1e6 for row in sizes]
    stages = stages_of(sizes)
    lengths = [[row["stages"][stage] for row in sizes] for stage in stages]
    colours = [_colour(stage) for stage in stages]
    grid[0, 0].stackplot(megavoxels, lengths, labels=stages, colors=colours)
    figure.legend(loc="outside upper left", ncols=len(stages), fontsize=9, frameon=False)
    _line(grid[1, 0], megavoxels, sizes, "peak_mb", 1e-3)
    for column, (rows, key) in enumerate(((threads, "threads"), (pairs, "pairs")), start=1):
        at = [row[key] for row in rows]
        _line(grid[0, column], at, rows, "seconds")
        _line(grid[1, column], at, rows, "peak_mb", 1e-3)
        grid[1, column].set_xticks(at)
    ends = f"{sizes[0]['size']}³ … {sizes[-1]['size']}³"
    titles = (f"million voxels of each volume, {ends}", "threads", "pairs, one after the other")
    for (upper, lower), title in zip(grid.T, titles, strict=True):
        lower.set_xlabel(title)
        for ax, label in ((upper, "seconds"), (lower, "peak memory, GB")):
            ax.set(ylabel=label, ylim=(0, 1.1 * ax.get_ylim()[1]))
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _colour(stage: str) -> str:
    return STAGE_COLOURS.get(stage, "0.3")


def _line(
    ax: Axes, at: Sequence[float], rows: Sequence[Mapping[str, Any]], key: str, factor: float = 1.0
) -> None:
    ax.plot(at, [row[key] * factor for row in rows], "o-", color=OURS)


def _bars(ax: Axes, title: str, room: float) -> None:
    """Read from above, with room for what is written beside the bars."""
    ax.invert_yaxis()
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_xlim(0, ax.get_xlim()[1] * room)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", alpha=0.25)
    ax.set_axisbelow(True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _save(figure: Figure, path: Path) -> None:
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "charts"}  # small, repeatable
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)

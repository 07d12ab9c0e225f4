"""Headline numbers over commits: `python benchmarks/history.py` plots `results/history.jsonl`.

Every run of a benchmark that has headline numbers appends a line with date, commit and machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import record

FILE = "history.jsonl"


def append(name: str, result: record.Result, numbers: Mapping[str, float], date: str = "") -> None:
    """Add a line.

    Args:
        name: Of the result.
        result: For machine and commit.
        numbers: By "quantity, of what".
        date: Year-month-day; today if there is none.
    """
    line = {
        "date": date or datetime.now(UTC).date().isoformat(),
        "commit": result["commit"],
        "machine": f"{result['cores']} cores of {result['processor']}",
        "result": name,
        "numbers": numbers,
    }
    with (record.RESULTS / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def read() -> list[dict[str, Any]]:
    """All lines, the oldest first."""
    text = (record.RESULTS / FILE).read_text(encoding="utf-8")
    return sorted(map(json.loads, text.splitlines()), key=lambda line: line["date"])


def main() -> None:
    """Plot a panel per quantity and a curve per result and method, over the commits."""
    from charts import plain, plt, save  # here, as not every benchmark needs matplotlib

    lines = read()
    commits = list(dict.fromkeys(line["commit"] for line in lines))
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in lines:
        for key, value in line["numbers"].items():
            quantity, _, method = key.partition(", ")
            curve = curves.setdefault(quantity, {}).setdefault(f"{line['result']}: {method}", [])
            curve.append((commits.index(line["commit"]), value))
    heights = [max(15, len(each)) for each in curves.values()]  # lines of its legend
    figure, panels = plt.subplots(
        len(curves),
        figsize=(11, 0.19 * sum(heights)),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
    )
    for ax, (quantity, each) in zip(panels[:, 0], curves.items(), strict=True):
        for label, points in each.items():
            ax.plot(*zip(*points, strict=True), "o-", markersize=4, label=label)
        ax.set_title(quantity, loc="left", fontsize=10)
        plain(ax)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
    panels[-1, 0].set_xticks(range(len(commits)), commits, rotation=60, ha="right", fontsize=7)
    path = record.RESULTS / "history.svg"
    save(figure, path, bbox_inches="tight")
    print(path)


if __name__ == "__main__":
    main()

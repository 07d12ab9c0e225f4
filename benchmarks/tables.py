"""What pages are made of: Markdown tables, and differences of displacements; needs numpy alone."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from record import Result, Row

    Column = tuple[str, str, str]  # title, key, format

#: Columns of `metrics.deformation.regularity`.
REGULARITY = (
    ("SDlogJ", "sd_log_jacobian", ".3f"),
    ("folds, %", "nonpositive_jacobian_percent", ".4f"),
    ("non-diffeomorphic volume, %", "nondiffeomorphic_volume_percent", ".4f"),
)
#: Of a job, in their order; a peer's "register" is its affine and all that follows.
STAGES = (
    *("start-up", "load", "affine", "checks", "preprocess", "network"),
    *("register", "warp", "metrics", "save"),
)


def measured(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns for which any row has a value."""
    return [column for column in columns if any(row.get(column[1]) is not None for row in rows)]


def markdown_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """A Markdown table; a dash where a row has no value."""
    titles = [title for title, _, _ in columns]
    rules = ["---:" if spec else "---" for _, _, spec in columns]
    body = [[_cell(row.get(key), spec) for _, key, spec in columns] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (titles, rules, *body))


def page_of_rows(
    text: str, columns: Sequence[Column], named_by: Sequence[str] = ()
) -> Callable[[Result], str]:
    """What writes the page of a result that is one table: `text`, its `rows`, and what failed.

    Args:
        text: Names values of the result in braces.
        columns: Of the table.
        named_by: Keys that say which row failed.
    """

    def body(result: Result) -> str:
        rows = result["rows"]
        table = markdown_table([row for row in rows if "error" not in row], columns)
        return f"{text.format_map(result)}\n\n{table}{failures(rows, *named_by)}"

    return body


def grouped(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some keys, in the order in which they come."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in keys), []).append(row)
    return groups


def average(
    rows: Iterable[Row], key: str, of: Callable[[list[float]], float] = statistics.fmean
) -> float | None:
    """Of the rows that have a value; None if none has."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return of(values) if values else None


def origin(result: Result) -> str:
    """Where a result comes from, for its page: machine, threads, commit, versions."""
    versions = ", ".join(f"{p} {v}" for p, v in result["versions"].items() if v)
    earlier = result.get("resumed_from")
    threads = result.get("threads")
    return (
        (f"{result['gpu']}, " if "gpu" in result else "")
        + f"{result['cores']} cores of {result['processor']}, "
        + (f"{threads} thread{'s' * (threads != 1)}, " if isinstance(threads, int) else "")
        + f"commit {result['commit'] or 'unknown'}"
        + (f", and rows of earlier runs at {', '.join(earlier)}" if earlier else "")
        + f"; {versions}"
    )


def medians(rows: Sequence[Row], keys: Iterable[str]) -> Row:
    """Of some figures of a job that was done several times, and of each of its `stages`, if any."""
    entry: Row = {key: statistics.median(row[key] for row in rows) for key in keys}
    if stages := dict.fromkeys(stage for row in rows for stage in row.get("stages", ())):
        entry["stages"] = {
            stage: statistics.median(row["stages"].get(stage, 0.0) for row in rows)
            for stage in stages
        }
    return entry


def stages_of(rows: Iterable[Row]) -> list[str]:
    """All stages of some rows, in the order in which they are done; others come last."""
    stages = dict.fromkeys(stage for row in rows for stage in row["stages"])
    known = [stage for stage in STAGES if stage in stages]
    return known + [stage for stage in stages if stage not in STAGES]


def failures(rows: Iterable[Mapping[str, Any]], *keys: str) -> str:
    """A list of the rows that have an `error`, for the end of a page; nothing if none has."""
    failed = dict.fromkeys(
        f"- {', '.join(str(row[key]) for key in keys)}: {row['error']}\n"
        for row in rows
        if "error" in row
    )
    return "\nFailed, and left out above:\n\n" + "".join(failed) if failed else ""


def differences(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> dict[str, float]:
    """Lengths of the difference vectors (3, i, j, k) in voxels, over all voxels of all pairs."""
    lengths = np.stack(
        [np.linalg.norm(b - a, axis=0) for a, b in zip(expected, actual, strict=True)]
    )
    return {
        "mean_difference_vox": float(lengths.mean(dtype=np.float64)),
        "p999_difference_vox": float(np.quantile(lengths, 0.999)),
        "max_difference_vox": float(lengths.max()),
    }


def _cell(value: Any, spec: str) -> str:
    return "–" if value is None else format(value, spec)

"""All pairs of a cohort at a glance: summary.csv, summary.json and summary.html."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import CohortError
from ..request import Options
from ..results.json_files import json_text
from ..system.files import read_json
from ..system.staging import staged_file
from .page import page
from .row import Row
from .work import location_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from .pairs import Pair
    from .work import Outcome

CSV = "summary.csv"
JSON = "summary.json"
HTML = "summary.html"
NOT_RUN = "not run"
# By which pairs are ordered: the first that a pair has. More is better in all.
RANKING = ("quality.score", "dice.after.mean", "ncc.after")
# What is summarised of each label.
OF_LABELS = ("dice.before", "dice.after", "hd95_mm.after", "assd_mm.after")
QUANTILES = {"min": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "max": 100}


def write_summary(
    out_dir: Path,
    pairs: Sequence[Pair],
    outcomes: Mapping[str, Outcome],
    seconds: float,
    options: Options | None = None,
) -> dict[str, Any]:
    """Write the three files beside the pairs, from the metrics in the pairs' folders.

    Args:
        out_dir: Of the cohort.
        pairs: All of it.
        outcomes: By the pair's name; those without one have not run.
        seconds: That the cohort took.
        options: Of the cohort, which tell where the results lie.

    Returns:
        What summary.json holds.

    Raises:
        OutputError: They cannot be written.
    """
    options = options or Options()
    rows = worst_first([_row(out_dir, p, outcomes.get(p.name), options) for p in pairs])
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    statistics = {name: statistics_of([r.metrics.get(name) for r in rows]) for name in names}
    done = sum(row.status == "done" for row in rows)
    summary = {
        "pairs": len(rows),
        **{s.replace(" ", "_"): sum(r.status == s for r in rows) for s in _STATUSES},
        "seconds": round(seconds, 3),
        "pairs_per_minute": round(60 * done / seconds, 3) if done and seconds else None,
        "statistics": {name: entry for name, entry in statistics.items() if entry},
        "labels": labels_worst_first(rows),
        "results": [_entry(row) for row in rows],
    }
    with staged_file(out_dir / CSV) as path:
        _write_csv(path, rows, names)
    with staged_file(out_dir / JSON) as path:
        path.write_text(json_text(summary, 1), encoding="utf-8")
    with staged_file(out_dir / HTML) as path:
        path.write_text(page(rows, summary), encoding="utf-8", errors="backslashreplace")
    return summary


_STATUSES = ("done", "kept", "failed", NOT_RUN)


def worst_first(rows: Sequence[Row]) -> list[Row]:
    """Failures, pairs without results, doubtful ones, and the others; of each, the worst first.

    Pairs are compared by their place among all pairs that have the same measure, because scores,
    Dice and NCC themselves cannot be compared.
    """
    known = {
        name: np.array([v for row in rows if (v := row.metrics.get(name)) is not None])
        for name in RANKING
    }

    def rank(row: Row) -> tuple[int, float]:
        if row.status in ("failed", NOT_RUN):
            return ("failed", NOT_RUN).index(row.status), 0.0
        name = next((name for name in RANKING if row.metrics.get(name) is not None), None)
        if name is None:
            return 2, 0.0
        below = int((known[name] < row.metrics[name]).sum())
        return 3 if row.warnings else 4, below / known[name].size

    return sorted(rows, key=rank)


def labels_worst_first(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Statistics of each label over all pairs, and the pair that is worst at it."""
    names = {label: name for row in rows for label, name in row.label_names.items()}
    labels: dict[str, dict[str, Any]] = {}
    for label in dict.fromkeys(label for row in rows for label in row.labels):
        values = {key: [row.labels.get(label, {}).get(key) for row in rows] for key in OF_LABELS}
        entry = {key: statistics_of(each) for key, each in values.items()}
        after = [(v, row.pair.name) for row, v in zip(rows, values["dice.after"], strict=True)]
        worst = min(((v, name) for v, name in after if v is not None), default=None)
        if worst:
            labels[label] = {
                "name": names.get(label, ""),
                "worst_pair": worst[1],
                **{key: statistics for key, statistics in entry.items() if statistics},
            }
    return dict(sorted(labels.items(), key=lambda item: item[1]["dice.after"]["mean"]))


def statistics_of(values: Sequence[float | None]) -> dict[str, float] | None:
    """Number, mean, standard deviation (of the sample) and quantiles of the values that exist."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return None
    spread = float(known.std(ddof=1)) if known.size > 1 else 0.0
    quantiles = np.percentile(known, list(QUANTILES.values()))
    return {
        "n": int(known.size),
        "mean": float(known.mean()),
        "sd": spread,
        **dict(zip(QUANTILES, map(float, quantiles), strict=True)),
    }


def _row(out_dir: Path, pair: Pair, outcome: Outcome | None, options: Options) -> Row:
    location = location_of(pair, options, out_dir)
    folder, names = location.folder, location.names
    # Of a dataset that all share, the folder that holds this pair's.
    home = (folder / names.metrics).parent.relative_to(out_dir).as_posix()
    if outcome is None:
        return Row(pair, NOT_RUN, "", (), {}, home, None)
    if outcome.status == "failed":
        return Row(pair, outcome.status, outcome.note, (), {}, home, None)
    metrics = read_json(folder / names.metrics, "the metrics of a pair", CohortError)
    record = read_json(folder / names.record, "the record of a pair", CohortError)
    numbers = dict(_numbers({k: v for k, v in metrics.items() if k != "provenance"}))
    report = folder / names.report
    link = report.relative_to(out_dir).as_posix() if report.is_file() else None
    return Row(
        pair,
        outcome.status,
        outcome.note,
        tuple(record["warnings"]),
        numbers,
        home,
        link,
        labels=_labels(metrics),
        label_names=metrics.get("label_names", {}),
    )


def _labels(metrics: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """`OF_LABELS` of each label."""
    labels: dict[str, dict[str, float | None]] = {}
    for key in OF_LABELS:
        metric, _, stage = key.partition(".")
        for label, value in metrics.get(metric, {}).get(stage, {}).get("labels", {}).items():
            labels.setdefault(label, {})[key] = value
    return labels


def _numbers(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Every number of a table within tables, by its path; not those of single labels."""
    for key, value in table.items():
        if isinstance(value, dict) and key != "labels":
            yield from _numbers(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield f"{prefix}{key}", value


def _entry(row: Row) -> dict[str, Any]:
    return {
        "name": row.pair.name,
        "status": row.status,
        "note": row.note,
        "warnings": list(row.warnings),
        "folder": row.folder,
        "files": {role: str(path) for role, path in row.pair.inputs.files().items()},
        "notes": dict(row.pair.notes),
        "metrics": row.metrics,
    }


def _write_csv(path: Path, rows: Sequence[Row], names: Sequence[str]) -> None:
    notes = list(dict.fromkeys(column for row in rows for column, _ in row.pair.notes))
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream)
        writer.writerow(["name", "status", "note", "warnings", "moving", "fixed", *notes, *names])
        for row in rows:
            own = dict(row.pair.notes)
            cells = [row.pair.name, row.status, row.note, " ".join(row.warnings)]
            cells += [str(row.pair.inputs.moving), str(row.pair.inputs.fixed)]
            cells += [own.get(column, "") for column in notes]
            writer.writerow([*cells, *(row.metrics.get(name) for name in names)])

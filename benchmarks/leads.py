"""Two results of latency.py compared: how many times faster than the first contender others are."""

from __future__ import annotations

from collections.abc import Sequence

from record import BenchmarkError, Result, Row
from tables import markdown_table

COLUMNS = (
    ("network", "network", ""),
    ("contender", "contender", ""),
    ("threads", "threads", "d"),
    ("times faster before", "before", ".2f"),
    ("now", "after", ".2f"),
    ("now / before", "change", ".2f"),
)


def compared(new: Result, old: Result) -> list[Row]:
    """How each contender's lead over the first changed; below 1 is slower.

    Leads and not seconds, which differ between machines and days.

    Raises:
        BenchmarkError: The two have nothing in common, or another first contender.
    """
    if new["baseline"] != old["baseline"]:
        raise BenchmarkError(
            f"--compare: expected a result that compares with {new['baseline']}, got one with "
            f"{old['baseline']}; measure with the same first contender."
        )
    before = {_key(row): row["times_faster"] for row in _leads(old)}
    rows = [row | {"before": before[_key(row)]} for row in _leads(new) if _key(row) in before]
    if not rows:
        raise BenchmarkError(
            "--compare: expected networks, contenders and threads of this run in the older "
            "result, got none of them; compare with another."
        )
    for row in rows:
        row |= {"after": row["times_faster"], "change": row["times_faster"] / row["before"]}
    return rows


def check_leads(rows: Sequence[Row], tolerance: float) -> None:
    """Print how it changed.

    Raises:
        BenchmarkError: A contender lost more of its lead than `tolerance`.
    """
    print(markdown_table(rows, COLUMNS))
    if slower := [row for row in rows if row["change"] < 1 - tolerance]:
        what = ", ".join(
            f"{r['contender']} with {r['threads']} threads {r['change']:.2f}" for r in slower
        )
        raise BenchmarkError(
            f"--compare: expected every lead at least {1 - tolerance:.2f} of what it was, got "
            f"{what}; run again, and look for the change if it stays."
        )


def _leads(result: Result) -> list[Row]:
    return [
        row | {"network": network["name"]}
        for network in result["networks"]
        for row in network["rows"]
        if "error" not in row and row["contender"] != result["baseline"]
    ]


def _key(row: Row) -> tuple[str, str, int]:
    return row["network"], row["contender"], row["threads"]

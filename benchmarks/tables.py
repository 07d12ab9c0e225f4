"""What results are made of: Markdown tables and differences of displacements; needs numpy alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Column = tuple[str, str, str]  # title, key, format


def markdown_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> str:
    """A Markdown table; a dash where a row has no value."""
    titles = [title for title, _, _ in columns]
    rules = ["---:" if spec else "---" for _, _, spec in columns]
    body = [[_cell(row.get(key), spec) for _, key, spec in columns] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (titles, rules, *body))


def origin(result: Mapping[str, Any]) -> str:
    """Where a result comes from, for its page: machine, commit, versions."""
    versions = ", ".join(f"{p} {v}" for p, v in result["versions"].items() if v)
    return (
        f"{result['cores']} cores of {result['processor']}, commit "
        f"{result['commit'] or 'unknown'}; {versions}"
    )


def differences(expected: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> dict[str, float]:
    """Lengths of the difference vectors (3, i, j, k) in voxels, over all voxels of all pairs."""
    lengths = np.stack(
        [np.linalg.norm(b - a, axis=0) for a, b in zip(expected, found, strict=True)]
    )
    return {
        "mean_difference_vox": float(lengths.mean(dtype=np.float64)),
        "p999_difference_vox": float(np.quantile(lengths, 0.999)),
        "max_difference_vox": float(lengths.max()),
    }


def _cell(value: Any, spec: str) -> str:
    return "–" if value is None else format(value, spec)

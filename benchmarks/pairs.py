"""Which labelled subject of a folder is registered to which."""

from __future__ import annotations

import csv
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from paramorph.data import find_subjects
from record import BenchmarkError

if TYPE_CHECKING:
    from paramorph.data import SubjectFiles


def labelled_pairs(
    folder: Path, table: Path | None = None
) -> list[tuple[SubjectFiles, SubjectFiles]]:
    """Pairs (moving, fixed) of the folder's subjects that have label maps.

    Args:
        folder: `NAME_*.nii.gz` with `NAME_labels.nii.gz`.
        table: CSV with the columns `moving` and `fixed`, subject names; None pairs each subject
            with the next, and the last with the first.

    Raises:
        BenchmarkError: Fewer than two subjects with labels, or a table that names others.
    """
    subjects = {s.name: s for s in find_subjects(folder) if s.labels is not None}
    if len(subjects) < 2:
        raise BenchmarkError(
            f"{folder}: expected at least two volumes with labels, got {len(subjects)}; add "
            "NAME_labels.nii.gz beside NAME.nii.gz."
        )
    if table is None:
        everyone = list(subjects.values())
        return list(pairwise([*everyone, everyone[0]]))
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"moving", "fixed"} <= rows[0].keys():
        raise BenchmarkError(
            f"{table}: expected a CSV with the columns moving and fixed, got none; add its first "
            "line, moving,fixed."
        )
    for name in (row[side] for row in rows for side in ("moving", "fixed")):
        if name not in subjects:
            raise BenchmarkError(
                f"{table}: expected subjects with labels of {folder}, got {name}; choose from "
                f"{', '.join(subjects)}."
            )
    return [(subjects[row["moving"]], subjects[row["fixed"]]) for row in rows]

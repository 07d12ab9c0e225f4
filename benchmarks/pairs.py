"""Labelled subjects: which of them is registered to which, and how a made-up one is written."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from paramorph import data
from paramorph.data import SubjectFiles
from paramorph_rt.images.volume import Volume, save_labels, save_volume
from record import BenchmarkError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Integer


def labelled_pairs(
    folder: Path, table: Path | None = None
) -> list[tuple[SubjectFiles, SubjectFiles]]:
    """Pairs (moving, fixed) of the folder's subjects that have label maps.

    Args:
        folder: `NAME_*.nii.gz` with `NAME_labels.nii.gz`.
        table: CSV with the columns `moving` and `fixed`, subject names; None pairs each subject
            with the next, and the last with the first.

    Raises:
        DataError: Fewer than two subjects with labels.
        BenchmarkError: A table that names others.
    """
    pairs = data.labelled_pairs(folder)
    if table is None:
        return pairs
    subjects = {moving.name: moving for moving, _ in pairs}
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


def write_subject(
    folder: Path, name: str, image: Volume, labels: Integer[np.ndarray, "i j k"]
) -> SubjectFiles:
    """Write an image, and labels of its voxels beside it."""
    files = SubjectFiles(name, folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz")
    save_volume(files.image, image)
    save_labels(files.labels, Volume(labels, image.grid, f"{name}'s labels"))
    return files

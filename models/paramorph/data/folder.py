"""The layout `folder`: volumes side by side, each with its label map if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from paramorph.data.subjects import DataError, SubjectFiles, is_volume, stem

LABELS_SUFFIX = "_labels"

Each = TypeVar("Each")


def find_subjects(folder: str | Path) -> list[SubjectFiles]:
    """All volumes of a folder, by name, each with its label map if there is one.

    `NAME_labels.nii.gz` holds the labels of the volume `NAME.nii.gz` or `NAME_anything.nii.gz`.

    Raises:
        DataError: No such folder, no volume in it, one volume twice, or a label map without its
            volume.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of volumes, found none; check the path.")
    files: dict[str, Path] = {}
    for path in sorted(filter(is_volume, folder.iterdir())):
        if stem(path) in files:
            raise DataError(
                f"{path}: expected one file of that name, found {files[stem(path)].name} as well; "
                "remove one."
            )
        files[stem(path)] = path
    labels = {
        s.removesuffix(LABELS_SUFFIX): p for s, p in files.items() if s.endswith(LABELS_SUFFIX)
    }
    subjects = []
    for name, image in files.items():
        if not name.endswith(LABELS_SUFFIX):
            owners = [n for n in labels if name == n or name.startswith(f"{n}_")]
            owner = max(owners, key=len, default=name)
            subjects.append(SubjectFiles(owner, image, labels.pop(owner, None)))
    if labels:
        raise DataError(
            f"{next(iter(labels.values()))}: expected its volume beside it, found none; add "
            "NAME.nii.gz for every NAME_labels.nii.gz."
        )
    if not subjects:
        raise DataError(
            f"{folder}: expected .nii, .nii.gz or .hdr volumes, found none; check the path."
        )
    return subjects


def labelled_pairs(folder: str | Path) -> list[tuple[SubjectFiles, SubjectFiles]]:
    """Each labelled volume of a folder with the next, and the last with the first.

    Raises:
        DataError: As of `find_subjects`, or fewer than two volumes with labels.
    """
    labelled = [subject for subject in find_subjects(folder) if subject.labels is not None]
    return each_to_next(labelled, "volumes with NAME_labels.nii.gz beside them", folder)


def each_to_next(things: Sequence[Each], what: str, folder: str | Path) -> list[tuple[Each, Each]]:
    """Each with the next, and the last with the first.

    Args:
        things: At least two.
        what: They are, for the message.
        folder: Where they were looked for.

    Raises:
        DataError: Fewer than two.
    """
    if len(things) < 2:
        raise DataError(
            f"{folder}: expected at least two {what}, got {len(things)}; check the folder."
        )
    return list(pairwise([*things, things[0]]))

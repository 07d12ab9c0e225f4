"""The layout `csv`: a table with a line per subject."""

from __future__ import annotations

import csv
from pathlib import Path

from paramorph.data.subjects import DataError, Split, SubjectFiles, is_volume, stem

COLUMNS = ("image", "labels", "name", "split")
PARTS = ("training", "validation")


def read_csv(path: str | Path) -> Split:
    """The subjects of a CSV file with the columns `image`, `labels`, `name` and `split`.

    Only `image` must be there. Paths are relative to the file's folder. An empty or missing cell
    stands for: no labels, the volume's file name, training.

    Raises:
        DataError: Not such a file, or a line that cannot be used, by its number.
    """
    path = Path(path)
    header, rows = _cells(path)
    unknown = [column for column in header if column not in COLUMNS]
    if "image" not in header or unknown or len(set(header)) < len(header):
        raise DataError(
            f"{path}, line 1: expected columns among {', '.join(COLUMNS)} with image among them, "
            f"got {', '.join(header) or 'none'}; name them so and separate them by commas."
        )
    split = Split([], [])
    lines: dict[str, int] = {}
    for line, cells in rows:
        where = f"{path}, line {line}"
        if len(cells) != len(header):
            raise DataError(
                f"{where}: expected {len(header)} cells as in line 1, got {len(cells)}; "
                "quote a cell that has a comma in it."
            )
        row = dict(zip(header, cells, strict=True))
        files = _subject(where, path.parent, row)
        if files.name in lines:
            raise DataError(
                f"{where}: expected a name of its own, got {files.name} as in line "
                f"{lines[files.name]}; fill the column name."
            )
        lines[files.name] = line
        part = row.get("split") or PARTS[0]
        if part not in PARTS:
            raise DataError(f"{where}: expected {' or '.join(PARTS)} as split, got {part}.")
        getattr(split, part).append(files)
    if not split.training:
        raise DataError(f"{path}: expected a subject to train on, found none; add a line for it.")
    return split


def _cells(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the other lines that are not empty with their numbers."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a CSV file in UTF-8, got {error}.") from error
    lines = [(line, cells) for line, cells in lines if any(cells)]
    header = lines.pop(0)[1] if lines else []
    return header, lines


def _subject(where: str, folder: Path, row: dict[str, str]) -> SubjectFiles:
    if not row["image"]:
        raise DataError(f"{where}: expected an image, got an empty cell; fill or remove the line.")
    image = _file(where, folder, row["image"])
    labels = _file(where, folder, row["labels"]) if row.get("labels") else None
    name = row.get("name") or stem(image)
    if Path(name).name != name:
        raise DataError(f"{where}: expected a name fit for a file, got {name}; leave out slashes.")
    return SubjectFiles(name, image, labels)


def _file(where: str, folder: Path, cell: str) -> Path:
    path = folder / cell
    if not path.is_file():
        raise DataError(
            f"{where}: expected a volume at {path}, found none; paths are relative to the CSV "
            "file's folder."
        )
    if not is_volume(path):
        raise DataError(
            f"{where}: expected a .nii, .nii.gz or .hdr file, got {path}; convert it first."
        )
    return path

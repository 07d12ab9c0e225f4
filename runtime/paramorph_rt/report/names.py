"""Names of labels, from any table that has a number and a name in each line."""

from __future__ import annotations

import csv
from pathlib import Path

from ..errors import VolumeError


def read_label_names(path: str | Path) -> dict[int, str]:
    """Read label numbers and names from CSV, TSV (BIDS), or FreeSurfer's and ITK-SNAP's tables.

    In each line, the first whole number is the label and the first field that is no number its
    name; lines that lack either (headings) are left out, and so are comments (# or //).

    Raises:
        VolumeError: The file cannot be read, or no line has a number and a name.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "bytes that are not UTF-8"
        raise VolumeError(
            f"{path}: expected a text file of label names, got {reason}; check the path."
        ) from err
    names: dict[int, str] = {}
    for line in text.splitlines():
        if line.startswith(("#", "//")):
            continue
        delimiter = next((mark for mark in "\t,;" if mark in line), " ")
        fields = next(csv.reader([line.strip()], delimiter=delimiter, skipinitialspace=True), [])
        fields = [field.strip() for field in fields]
        label = next((int(field) for field in fields if field.isdecimal()), None)
        name = next((field for field in fields if field and not _is_number(field)), None)
        if label is not None and name is not None:
            names[label] = name
    if not names:
        raise VolumeError(
            f"{path.name}: expected lines of a label number and its name, got none; "
            "pass a table such as '17,Left hippocampus'."
        )
    return names


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True

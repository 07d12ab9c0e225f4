"""Names of labels, from the tables that people have: CSV, BIDS TSV, FreeSurfer, ITK-SNAP, text.

The format is recognised by a file's lines, not by its name.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EvaluationError
from ..system.files import read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

# Headings of a table in the order in which they are looked for; "label" may head either column.
_NUMBERS = (
    "index",
    "id",
    "number",
    "no",
    "label number",
    "label id",
    "value",
    "key",
    "intensity",
    "label",
)
_NAMES = (
    "name",
    "label name",
    "structure",
    "structure name",
    "region",
    "region name",
    "roi",
    "label",
)
_COMMENTS = ("#", "//")
# Number, colour (3), opacity, visibility (2), and the name in quotes.
_ITK_SNAP = re.compile(r'(-?\d+)(?:\s+[\d.]+){6}\s+"(.*)"')
_TEXT = re.compile(r"(-?\d+)\s+(.+)")
_COLOUR = re.compile(r"(?:\s+\d+){3,4}$")  # FreeSurfer's, behind the name
_CELL = re.compile(r"-?\d+(\.\d*)?")

Line = tuple[int, str]  # its number in the file, and its text
Entry = tuple[int, str, str]  # line, label as it is written, name


def load_label_names(path: str | Path) -> dict[int, str]:
    """Read the name of each label.

    Args:
        path: Text in UTF-8 with a label in each line: CSV or TSV, with headings (``label,name``,
            BIDS' ``index<TAB>name``) or without; a colour table of FreeSurfer; a label description
            of ITK-SNAP; or a number and a name, which may have spaces, as MRIcron has them.
            Empty lines and comments (# or //) are left out.

    Raises:
        EvaluationError: No such file, or a line without a number and a name, by its number.
    """
    path = Path(path)
    text = read_text(path, "a text file with names of labels", EvaluationError)
    numbered = ((n, line.strip(" \r")) for n, line in enumerate(text.split("\n"), 1))
    lines = [(n, line) for n, line in numbered if line.strip() and not _is_comment(line)]
    names = {
        _whole(label): name for line, label, name in _entries(lines, path) if _is_entry(label, name)
    }
    if not names:
        raise EvaluationError(
            f"{path.name}: expected a table with a number and a name in each line, got "
            f"{'none' if lines else 'an empty one'}; write lines such as 17,Left hippocampus."
        )
    return names


def names_of_labels(labels: Iterable[str], names: Mapping[int, str]) -> dict[str, str]:
    """Those of the labels that are known, as metrics.json holds them."""
    return {label: names[int(label)] for label in labels if int(label) in names}


def _is_comment(line: str) -> bool:
    return line.lstrip().startswith(_COMMENTS)


def _entries(lines: list[Line], path: Path) -> Iterator[Entry]:
    """Every label with its name; the first line may be headings, any other must be a label."""
    delimiter = _delimiter(lines)
    entries = _of_text(lines) if delimiter is None else _of_table(lines, delimiter, path)
    for n, (line, label, name) in enumerate(entries):
        if not _is_entry(label, name) and n:
            got = next(text for number, text in lines if number == line)
            raise EvaluationError(
                f"{path.name}, line {line}: expected the number and the name of a label, got "
                f'"{_short(got)}"; complete the line, or remove it.'
            )
        yield line, label, name


def _is_entry(label: str, name: str) -> bool:
    return bool(name) and _is_whole(label)


def _delimiter(lines: list[Line]) -> str | None:
    """What separates the cells of a table; None for text, whose names may have commas."""
    if any(_is_text(line) for _, line in lines):
        return None
    looked_at = [line for _, line in lines[:2]]  # the first may be headings
    return next((mark for mark in "\t;," if any(mark in line for line in looked_at)), None)


def _is_text(line: str) -> bool:
    line = line.strip()
    return bool(_ITK_SNAP.fullmatch(line) or re.match(r"-?\d+ +[^\s,;]", line))


def _of_table(lines: list[Line], delimiter: str, path: Path) -> Iterator[Entry]:
    try:
        rows = [
            (n, [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter))])
            for n, line in lines
        ]
    except csv.Error as err:
        raise EvaluationError(
            f"{path.name}: expected a table of label names, got one that cannot be read ({err}); "
            "check that it is the right file."
        ) from err
    columns = _columns(rows[0][1])
    if columns:
        del rows[0]
        yield lines[0][0], "", ""  # the headings
    for n, row in rows:
        label, name = _picked(row, columns) if columns else _first_of_each(row)
        yield n, label, name


def _columns(headings: list[str]) -> tuple[int, int] | None:
    """Where the numbers and the names stand, if these are headings that say so."""
    plain = [re.sub(r"[\s_.-]+", " ", heading).strip().lower() for heading in headings]
    number = next((plain.index(word) for word in _NUMBERS if word in plain), None)
    names = (plain.index(word) for word in _NAMES if word in plain)
    name = next((column for column in names if column != number), None)
    return None if number is None or name is None else (number, name)


def _picked(row: list[str], columns: tuple[int, int]) -> tuple[str, str]:
    return tuple(row[at] if at < len(row) else "" for at in columns)  # type: ignore[return-value]


def _first_of_each(row: list[str]) -> tuple[str, str]:
    """The first whole number, and the first cell that is no number."""
    label = next(filter(_is_whole, row), "")
    return label, next((cell for cell in row if cell and not _is_number(cell)), "")


def _of_text(lines: list[Line]) -> Iterator[Entry]:
    entries = [_of_line(n, line) for n, line in lines]
    without = [_without_code(name) for _, _, name in entries]
    # MRIcron has a code behind each name; "Area 4" and "Area 6" are no names with codes.
    if len(entries) > 1 and all(without) and len(set(without)) == len(without):
        entries = [(n, label, name) for (n, label, _), name in zip(entries, without, strict=True)]
    yield from entries


def _of_line(number: int, line: str) -> Entry:
    if match := _ITK_SNAP.fullmatch(line.strip()):
        return number, match[1], match[2].strip()
    if match := _TEXT.fullmatch(line.strip()):
        return number, match[1], _COLOUR.sub("", match[2]).strip('" ')
    return number, "", ""


def _without_code(name: str) -> str:
    match = re.fullmatch(r"(\S+)\s+\d+", name)
    return match[1] if match else ""


def _is_whole(cell: str) -> bool:
    return _is_number(cell) and float(cell).is_integer()


def _whole(cell: str) -> int:
    return int(float(cell))


def _is_number(cell: str) -> bool:
    return _CELL.fullmatch(cell) is not None


def _short(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"

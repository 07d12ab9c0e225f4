"""Which pairs a cohort has: a table, all images to one template, or each image to each other."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from pathlib import Path

from ..errors import CohortError
from ..request import SEVERAL, SINGLE, Inputs
from ..system.files import read_bytes
from .images import LabelledImage, stem

NEEDED = ("moving", "fixed")
COLUMNS = ("name", *SINGLE, *SEVERAL)
BETWEEN = "|"  # the files of one cell
SEPARATORS = ",;\t"  # of a table's cells; its first line tells which
LONGEST_NAME = 200


@dataclass(frozen=True)
class Pair:
    """Two images of a cohort that are registered to each other.

    Attributes:
        name: Of the folder of results; no other pair has it.
        inputs: Its files.
        notes: Other columns of the table, which go into the summary.
    """

    name: str
    inputs: Inputs
    notes: tuple[tuple[str, str], ...] = ()


def pairs_of_table(table: Path, strict: bool = False) -> list[Pair]:
    """Read a CSV with a pair on each line.

    Cells are separated by commas, semicolons or tabs; the text is UTF-8, with or without a byte
    order mark. Paths are relative to the table. `moving` and `fixed` are needed; `COLUMNS` lists
    the others; `also` and `also_labels` take several files with | between them; any further
    column becomes a note.

    Args:
        table: The file.
        strict: Refuse the table for one file that is not there; else only its pair will fail.

    Raises:
        CohortError: Anything in it that cannot be used, with the number of its line; no pair has
            all its files.
    """
    rows = csv.reader(io.StringIO(text := _text(table), newline=""), delimiter=_separator(text))
    try:
        header = [cell.strip() for cell in next(rows, [])]
        _check_header(header, table)
        pairs = {}
        for row in rows:
            if any(cell.strip() for cell in row):
                subject = f"{table}, line {rows.line_num}"
                pairs[subject] = _pair(_cells(row, header, subject), table)
    except csv.Error as err:
        raise CohortError(
            f"{table}, line {rows.line_num}: expected a CSV table, got {err}; repair this line."
        ) from err
    if not pairs:
        raise CohortError(f"{table}: expected a pair on each line, got none; add lines.")
    checked = _checked(pairs)
    _check_files(pairs, strict)
    return checked


def pairs_to_template(
    template: Path, images: Sequence[LabelledImage], template_labels: Path | None = None
) -> list[Pair]:
    """Each image to one fixed template, which is left out where it is among the images.

    Args:
        template: Fixed image.
        images: See `images.images_with_labels`.
        template_labels: Its label map, to be compared with those of the images.

    Raises:
        CohortError: A file is missing, there is no image, or two have one name.
    """
    same = template.resolve()
    names = _names(images)
    pairs = {
        f"{image.image}": Pair(
            names[image.image],
            Inputs(
                image.image,
                template,
                moving_labels=image.labels,
                fixed_labels=template_labels if image.labels else None,
            ),
        )
        for image in images
        if image.image.resolve() != same
    }
    checked = _checked(pairs)
    _check_files(pairs, strict=True)
    return checked


def pairs_of_all(images: Sequence[LabelledImage]) -> list[Pair]:
    """Each image to each other, both ways; `images` as in `pairs_to_template`.

    Raises:
        CohortError: Fewer than two images, or two of one name.
    """
    names = _names(images)
    return _checked(
        {
            f"{moving.image} to {fixed.image}": Pair(
                f"{names[moving.image]}_to_{names[fixed.image]}",
                Inputs(
                    moving.image,
                    fixed.image,
                    moving_labels=moving.labels,
                    fixed_labels=moving.labels and fixed.labels,
                ),
            )
            for moving, fixed in permutations(images, 2)
        }
    )


def _names(images: Sequence[LabelledImage]) -> dict[Path, str]:
    """Of each image: its file's, with those of its folders where other files have it too."""
    count = Counter(stem(image.image) for image in images)
    return {
        image.image: stem(image.image)
        if count[stem(image.image)] == 1
        else "_".join((*image.relative.parent.parts, stem(image.image)))
        for image in images
    }


def _text(table: Path) -> str:
    content = read_bytes(table, "a CSV table", CohortError)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = content[: err.start].count(b"\n") + 1
        raise CohortError(
            f"{table}, line {line}: expected UTF-8 text, got the byte 0x{content[err.start]:02x}; "
            "save the table as CSV in UTF-8."
        ) from err
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise CohortError(
            f"{table}, line {line}: expected text, got a null byte; save the table as CSV in UTF-8."
        )
    return text


def _separator(text: str) -> str:
    """The one that most cells of the first line end with; a comma for a line of one cell."""
    first = text.partition("\n")[0]
    return max(SEPARATORS, key=first.count)


def _check_header(header: list[str], table: Path) -> None:
    subject = f"{table}, line 1"
    for column in header:
        if header.count(column) > 1:
            raise CohortError(
                f"{subject}: expected each column once, got {column or 'several without a name'} "
                f"{header.count(column)} times; rename or remove one."
            )
        plain = re.sub(r"[\s-]+", "_", column.lower())
        close = difflib.get_close_matches(plain, COLUMNS, n=1, cutoff=0.85)
        if close and column not in COLUMNS:
            raise CohortError(
                f'{subject}: expected a known column or a note, got "{column}", which is nearly '
                f'"{close[0]}"; write it like that, or call the note something else.'
            )
    if not set(NEEDED) <= set(header):
        raise CohortError(
            f"{subject}: expected the columns moving and fixed, got "
            f"{', '.join(filter(None, header)) or 'none'}; name the columns in the first line."
        )


def _cells(row: list[str], header: list[str], subject: str) -> dict[str, str]:
    if len(row) != len(header):
        raise CohortError(
            f"{subject}: expected {len(header)} cells as in the first line, got {len(row)}; quote "
            "cells that contain the separator."
        )
    cells = {column: cell.strip() for column, cell in zip(header, row, strict=True)}
    for column in NEEDED:
        if not cells[column]:
            raise CohortError(f"{subject}: expected a file as {column}, got none; fill the cell.")
    return cells


def _pair(cells: Mapping[str, str], table: Path) -> Pair:
    home = table.absolute().parent
    paths = {role: home / cells[role] for role in SINGLE if cells.get(role)}
    several = {
        role: tuple(home / part.strip() for part in cells[role].split(BETWEEN) if part.strip())
        for role in SEVERAL
        if cells.get(role)
    }
    notes = tuple(
        (column, cell) for column, cell in cells.items() if column and column not in COLUMNS
    )
    name = cells.get("name") or _default_name(paths["moving"], paths["fixed"])
    return Pair(name, Inputs(**paths, **several), notes)  # type: ignore[arg-type]


def _checked(pairs: Mapping[str, Pair]) -> list[Pair]:
    """The pairs, if all can be registered; the keys say where each comes from."""
    if not pairs:
        raise CohortError("cohort: expected at least one pair, got none; check the images.")
    owners: dict[str, str] = {}
    for subject, pair in pairs.items():
        _check_name(pair.name, subject)
        # Some file systems do not tell A from a.
        other = owners.setdefault(pair.name.casefold(), subject)
        if other != subject:
            raise CohortError(
                f"{subject}: expected a name of its own for each pair, got {pair.name} as for "
                f"{other}; use a table with a column name."
            )
        if pair.inputs.fixed_labels and not pair.inputs.moving_labels:
            raise CohortError(
                f"{subject}: expected moving_labels to compare fixed_labels with, got none; fill "
                "both or only the first."
            )
    return list(pairs.values())


def _check_files(pairs: Mapping[str, Pair], strict: bool) -> None:
    """Refuse files that are not there: one, or without `strict`, one of each pair."""
    exists = cache(Path.exists)  # a file may belong to many pairs
    missing = [
        (subject, role, path)
        for subject, pair in pairs.items()
        for role, path in pair.inputs.files().items()
        if not exists(path)
    ]
    if missing and (strict or len({subject for subject, *_ in missing}) == len(pairs)):
        subject, role, path = missing[0]
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CohortError(
            f"{subject}: expected a file as {role}, found none at {path}{more}; check the path "
            "(those in a table are relative to it)."
        )


def _check_name(name: str, subject: str) -> None:
    if name.startswith(".") or re.search(r"[/\\\x00-\x1f\x7f]", name):
        raise CohortError(
            f"{subject}: expected a name that can be a folder's, got {name!r}; use letters, digits "
            "and other characters without slashes, and no dot in front."
        )
    if len(name.encode()) > LONGEST_NAME:
        raise CohortError(
            f"{subject}: expected a name of at most {LONGEST_NAME} bytes, got "
            f"{len(name.encode())}; shorten it."
        )


def _default_name(moving: Path, fixed: Path) -> str:
    return f"{stem(moving)}_to_{stem(fixed)}"

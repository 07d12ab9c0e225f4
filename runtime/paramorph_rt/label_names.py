"""Names of labels: tables (CSV, TSV), FreeSurfer's colour tables, ITK-SNAP's label descriptions."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from .errors import EvaluationError

_NUMBER_COLUMNS = ("label", "index", "id", "number", "label number", "value", "key")
_NAME_COLUMNS = ("name", "label name", "structure", "structure name", "region")
# A number, and either the rest of the line up to a name in quotes (ITK-SNAP), or the name.
_LINE = re.compile(r'(\d+)\s+(?:.*"(?P<quoted>[^"]*)"|(?P<word>\S+))')


def load_label_names(path: str | Path) -> dict[int, str]:
    """Read the name of each label.

    Args:
        path: A .csv or .tsv with a header, such as ``label,name`` or BIDS' ``index<TAB>name``; or
            text with a number and a name per line, as FreeSurfer, MRIcron and ITK-SNAP write it.

    Raises:
        EvaluationError: No such file, or no names in it.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f"{path}: expected names of labels, found no file; check the path.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        names = _from_table(text) if path.suffix in (".csv", ".tsv") else _from_lines(text)
        if not names:
            raise ValueError("no line with a number and a name")
    except (ValueError, StopIteration) as err:
        raise EvaluationError(
            f"{path.name}: expected a table with columns label and name, or a number and a name "
            f"per line, got something else ({err}); convert it first."
        ) from err
    return names


def _from_table(text: str) -> dict[int, str]:
    first = text.splitlines()[0] if text else ""
    rows = csv.DictReader(text.splitlines(), delimiter=next((d for d in "\t;," if d in first), ","))
    columns = {column.strip().lower(): column for column in rows.fieldnames or ()}
    number = next((columns[c] for c in _NUMBER_COLUMNS if c in columns), None)
    name = next((columns[c] for c in _NAME_COLUMNS if c in columns), None)
    if number is None or name is None:
        raise ValueError(f"columns {', '.join(columns)}")
    return {int(row[number]): (row[name] or "").strip() for row in rows}


def _from_lines(text: str) -> dict[int, str]:
    found = (_LINE.match(line.strip()) for line in text.splitlines())
    return {int(m[1]): m["quoted"] if m["quoted"] is not None else m["word"] for m in found if m}

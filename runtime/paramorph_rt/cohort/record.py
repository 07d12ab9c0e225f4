"""What a pair's results were made of: the record beside them, by which a restart knows them."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from ..results import outputs
from ..results.json_files import write_json
from ..results.provenance import facts_in
from ..results.schemas import RECORD
from ..system.files import json_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from .pairs import Pair


def why_not_done(
    folder: Path,
    facts: Mapping[str, Any],
    wanted: Sequence[str] = (),
    names: outputs.Names = outputs.PLAIN,
) -> str | None:
    """None if a folder holds the results of these facts, whole; else what is missing or differs.

    Args:
        folder: Where the pair's results lie; an empty string is returned if there are none.
        facts: See `provenance.facts_of`.
        wanted: Further files or folders that must be there; others may be there, too.
        names: Of the results.
    """
    if not any((folder / name).exists() for name in names.own):
        return ""
    try:
        record = json_of(folder / names.record)
        if record.get("schema") != RECORD:
            return "its record is of another format"
        files, recorded = dict(record["files"]), facts_in(record["provenance"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return "it was not finished"
    there = dict(_sizes(folder, files))
    if damaged := [name for name, size in files.items() if there.get(name) != size]:
        return f"{', '.join(damaged)} is missing or of another size"
    if absent := [name for name in wanted if not (folder / name).exists()]:
        return f"{', '.join(absent)} was not requested"
    before, now = dict(_flat(recorded)), dict(_flat(facts))
    # One round through JSON, as the record went: it turns tuples into lists.
    now = json.loads(json.dumps(now))
    changed = sorted(key for key in before | now if before.get(key) != now.get(key))
    return f"changed since: {', '.join(changed)}" if changed else None


def write_record(
    folder: Path,
    pair: Pair,
    provenance: Mapping[str, Any],
    notes: Sequence[str],
    names: outputs.Names = outputs.PLAIN,
) -> None:
    """Vouch for the results in a folder.

    Args:
        folder: Holds all of them.
        pair: Whose they are.
        provenance: As in metrics.json.
        notes: Warnings of the registration.
        names: Of the results.
    """
    there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    files = [name for name in there if name not in names.shared]
    record = {
        "schema": RECORD,
        "name": pair.name,
        "provenance": dict(provenance),
        "warnings": list(notes),
        "process": os.getpid(),
        "files": dict(_sizes(folder, files)),
    }
    write_json(folder / names.record, record)


def _sizes(folder: Path, names: Any) -> Iterator[tuple[str, int]]:
    for name in names:
        if (folder / name).is_file():
            yield name, (folder / name).stat().st_size


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key} ")
        else:
            yield f"{prefix}{key}", value

"""What a pair's results were made of: the record beside them, by which a restart knows them."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .. import outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from .pairs import Pair

FORMAT = "paramorph-cohort-record"
FORMAT_VERSION = 1
# Whose versions can change results.
PACKAGES = (
    *("paramorph-rt", "numpy", "SimpleITK", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
)
# Headers whose voxels lie in another file of the same name.
DETACHED = (".hdr", ".img", ".mhd", ".nhdr")


def facts_of(
    files: Mapping[str, Path], options: Mapping[str, Any], model: Mapping[str, Any]
) -> dict[str, Any]:
    """All that decides a pair's results: contents, options, model and versions, no file names.

    Args:
        files: What is read, by what it is.
        options: As the registration gets them.
        model: Which network, computed by what.
    """
    return {
        "inputs": {role: content_hash(path) for role, path in files.items()},
        "options": dict(options),
        "model": dict(model),
        "versions": installed_versions(),
    }


def why_not_done(
    folder: Path,
    facts: Mapping[str, Any],
    wanted: Sequence[str] = (),
    names: outputs.Names = outputs.PLAIN,
) -> str | None:
    """None if a folder holds the results of these facts, whole; else what is missing or differs.

    Args:
        folder: Where the pair's results lie; an empty string is returned if there are none.
        facts: See `facts_of`.
        wanted: Further files or folders that must be there, and may be there unasked.
        names: Of the results.
    """
    if not any((folder / name).exists() for name in names.own):
        return ""
    try:
        record = json.loads((folder / names.record).read_text(encoding="utf-8"))
        if (record["format"], record["format_version"]) != (FORMAT, FORMAT_VERSION):
            return "its record is of another format"
        files, recorded = dict(record["files"]), {key: record[key] for key in facts}
    except (OSError, ValueError, TypeError, KeyError):
        return "it was not finished"
    there = dict(_sizes(folder, files))
    if damaged := [name for name, size in files.items() if there.get(name) != size]:
        return f"{', '.join(damaged)} is missing or of another size"
    if absent := [name for name in wanted if not (folder / name).exists()]:
        return f"{', '.join(absent)} was not asked for"
    before, now = dict(_flat(recorded)), dict(_flat(facts))
    # One round through JSON, as the record went: it turns tuples into lists.
    now = json.loads(json.dumps(now))
    changed = sorted(key for key in before | now if before.get(key) != now.get(key))
    return f"changed since: {', '.join(changed)}" if changed else None


def write_record(
    folder: Path,
    pair: Pair,
    facts: Mapping[str, Any],
    notes: Sequence[str],
    names: outputs.Names = outputs.PLAIN,
) -> None:
    """Vouch for the results in a folder.

    Args:
        folder: Holds all of them.
        pair: Whose they are.
        facts: See `facts_of`.
        notes: Warnings of the registration.
        names: Of the results.
    """
    there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    files = [name for name in there if name not in names.shared]
    record = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": pair.name,
        **facts,
        "paths": {role: str(path) for role, path in pair.files().items()},
        "warnings": list(notes),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": socket.gethostname(),
        "process": os.getpid(),
        "files": dict(_sizes(folder, files)),
    }
    outputs.write_json(folder / names.record, record)


@lru_cache(maxsize=1)
def installed_versions() -> dict[str, str | None]:
    """Versions of `PACKAGES`; None is not installed."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {package: installed(package) for package in PACKAGES}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, with its detached voxels, or of a folder's files and their names.

    A file that has not changed since it was last hashed is not read again.
    """
    if path.is_dir():
        parts = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.suffix in DETACHED:
        parts = sorted(p for p in path.parent.iterdir() if p.name.startswith(f"{path.stem}."))
    else:
        return _file_hash(path, *_state(path))
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{part.relative_to(path.parent)}\0{_file_hash(part, *_state(part))}".encode())
    return whole.hexdigest()


def _state(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _file_hash(path: Path, *state: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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

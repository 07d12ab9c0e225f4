"""The one door for whatever is read: regular files whose size is known before anybody opens them.

Nothing here waits: a pipe, a device or a folder in the place of a file is refused by its kind.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ParamorphError

# No table, transform in text, manifest or header is as large.
MOST_TEXT_BYTES = 2**26
# Deflate cannot compress better than 1032 : 1, so a compressed file bounds what it may promise.
MAX_DEFLATE_RATIO = 1032
# Images are not as empty as that where they are large; masks and label maps may be where small.
LARGE_BYTES, MAX_LARGE_RATIO, MOST_EMPTY_VOXELS = 2**30, 100, 2**27

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode), "a device"),
)


def check_regular(path: Path, what: str, error: type[ParamorphError]) -> int:
    """Refuse what is no regular file that can be read; returns its size in bytes.

    Args:
        path: The file, or a link to it.
        what: That was expected, with its article.
        error: What is raised.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path}: expected {what}, found none; check the path.") from None
    except (OSError, ValueError) as err:  # ValueError: a null byte
        reason = getattr(err, "strerror", None) or err
        raise error(
            f"{path}: expected {what}, got {reason}; check the path and its permissions."
        ) from err
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            raise error(f"{path}: expected {what}, got {kind}; check the path.")
    if not os.access(path, os.R_OK):
        raise error(
            f"{path}: expected {what}, got one without permission to read it; change its mode, or "
            "copy it."
        )
    return status.st_size


def read_bytes(
    path: Path, what: str, error: type[ParamorphError], most: int = MOST_TEXT_BYTES
) -> bytes:
    """The content of a file that has no reason to be larger than `most` bytes.

    Raises:
        ParamorphError: As `check_regular`, or it is larger, or reading fails.
    """
    size = check_regular(path, what, error)
    if size > most:
        raise error(
            f"{path}: expected {what} of at most {most} bytes, got {size}; check that it is the "
            "right file."
        )
    try:
        return path.read_bytes()
    except OSError as err:
        raise error(f"{path}: expected {what}, got {err.strerror or err}; check the disk.") from err


def read_text(path: Path, what: str, error: type[ParamorphError]) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises:
        ParamorphError: As `read_bytes`, or it is no such text.
    """
    content = read_bytes(path, what, error)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise error(
            f"{path}: expected {what} as text in UTF-8, got other bytes; check that it is the "
            "right file."
        ) from err


def read_json(path: Path, what: str, error: type[ParamorphError]) -> Any:
    """What a JSON file holds, which has no NaN and no infinity.

    Raises:
        ParamorphError: As `read_text`, or it is no JSON, or nested too deeply.
    """
    return parse_json(read_text(path, what, error), str(path), error)


def json_of(path: Path) -> Any:
    """What a JSON file holds that may be missing or anybody's; None if it cannot be read."""
    try:
        return read_json(path, "JSON", ParamorphError)
    except ParamorphError:
        return None


def parse_json(text: str, name: str, error: type[ParamorphError]) -> Any:
    """The same of a text; `name` is what messages call it."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as err:
        reason = "one nested too deeply" if isinstance(err, RecursionError) else f"another ({err})"
        raise error(
            f"{name}: expected JSON, got something else: {reason}; check that it is the right file."
        ) from err


def check_utf8(path: Path, error: type[ParamorphError]) -> str:
    """A path as ITK takes it, whose library aborts where others fail.

    Raises:
        ParamorphError: Its bytes are no UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as err:
        raise error(
            f"{path}: expected a path in UTF-8, as ITK needs it, got other bytes; rename it."
        ) from err
    return str(path)


def most_bytes(size: int, is_compressed: bool = True) -> int:
    """How many bytes a file of this size may hold."""
    if not is_compressed:
        return size
    return min(MAX_DEFLATE_RATIO * size, max(LARGE_BYTES, MAX_LARGE_RATIO * size))


def may_hold(size: int, content: int, voxels: int, is_compressed: bool = True) -> bool:
    """Whether an image may be in a file.

    Args:
        size: Of the file, in bytes.
        content: Of its voxels and what is before them, in bytes.
        voxels: Their number; each takes many more bytes in memory.
        is_compressed: By deflate.
    """
    if content > most_bytes(size, is_compressed):
        return False
    return voxels <= MOST_EMPTY_VOXELS or not is_compressed or content <= MAX_LARGE_RATIO * size


def sha256_of(path: str | Path) -> str:
    """Of a file's content; one that has not changed since is not read again.

    Raises:
        OSError: It is no regular file, or cannot be read.
    """
    path = Path(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "no regular file", str(path))
    return _sha256_of(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha256_of(path: Path, *state: int) -> str:
    return fresh_sha256_of(path)


def fresh_sha256_of(path: Path) -> str:
    """The same, read now whatever the file system says of it."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")

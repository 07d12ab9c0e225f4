"""Gzip by ISA-L, because zlib takes longer to compress a field than a network to find it.

Source: Intel's ISA-L by python-isal, https://python-isal.readthedocs.io
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from isal import igzip
from isal.igzip_lib import IsalError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedIOBase
    from pathlib import Path

#: What reading a damaged or truncated file may raise.
GZIP_ERRORS = (OSError, EOFError, cast("type[Exception]", IsalError))  # its stub has an instance
_LEVEL = 1  # of 0 to 3; the higher ones take longer and are no smaller


def is_no_gzip(path: Path) -> bool:
    """Whether a file is no gzip at all, rather than a damaged one."""
    with path.open("rb") as stream:
        return stream.read(2) != b"\x1f\x8b"


@contextmanager
def reading(path: Path, compressed: bool) -> Iterator[BufferedIOBase]:
    """The content of a file; the checksum of a compressed one is checked when its end is read."""
    with igzip.open(path, "rb") if compressed else path.open("rb") as stream:
        yield stream


@contextmanager
def writing(path: Path, compressed: bool) -> Iterator[BufferedIOBase]:
    """A file to write; equal content gives equal bytes, as neither name nor time is in it."""
    with path.open("wb") as stream:
        if not compressed:
            yield stream
            return
        with igzip.IGzipFile("", "wb", _LEVEL, stream, mtime=0) as packed:
            yield packed

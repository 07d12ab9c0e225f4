"""What the headers of NRRD and MetaImage announce, checked before ITK believes it.

ITK allocates what a header says, waits for pipes, and counts dimensions without looking at them.

Source:
    https://teem.sourceforge.net/nrrd/format.html, https://itk.org/Wiki/ITK/MetaIO/Documentation
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import VolumeError
from ..system.files import check_regular, may_hold

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

MOST_HEADER_BYTES = 2**20
MOST_LINE_BYTES = 2**15  # ITK aborts at longer ones
MOST_DIMENSIONS = 16  # NRRD's own limit
MOST_FILES = 10_000
_BYTES = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8"), 1),
    **dict.fromkeys(("uint8_t", "met_char", "met_uchar", "met_ascii_char"), 1),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16"), 2),
    **dict.fromkeys(("int16_t", "ushort", "unsigned short", "unsigned short int", "uint16"), 2),
    **dict.fromkeys(("uint16_t", "met_short", "met_ushort"), 2),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t", "uint", "unsigned int"), 4),
    **dict.fromkeys(("uint32", "uint32_t", "float", "met_int", "met_uint", "met_float"), 4),
    **dict.fromkeys(("met_long", "met_ulong"), 4),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64"), 8),
    **dict.fromkeys(("signed long long int", "int64_t", "ulonglong", "unsigned long long"), 8),
    **dict.fromkeys(("unsigned long long int", "uint64", "uint64_t", "double", "met_double"), 8),
    **dict.fromkeys(("met_long_long", "met_ulong_long"), 8),
}


# Of NRRD's encodings, those that ITK reads.
_PACKING = {"raw": "none", "gz": "gzip", "gzip": "gzip"}
_PACKING |= dict.fromkeys(("txt", "text", "ascii", "hex"), "text")


@dataclass(frozen=True)
class _Announced:
    """What a header says of the voxels.

    Attributes:
        sizes: Of every axis, that of the components among them.
        type: Of a number, a key of `_BYTES`.
        packing: "none", "gzip" or "text".
        files: With the voxels; the header's own if empty.
        offset: Where they begin in the header's own file.
    """

    sizes: Sequence[int]
    type: str
    packing: str
    files: Sequence[Path]
    offset: int


def check_header(path: Path) -> None:
    """Refuse a file of NRRD or MetaImage whose header announces what cannot be there.

    Raises:
        VolumeError: No regular file, a header without end, sizes that are none or that its bytes
            cannot hold, or data in what is no regular file.
    """
    check_regular(path, "an image file", VolumeError)
    with path.open("rb") as stream:
        content = stream.read(MOST_HEADER_BYTES)
    read = _of_nrrd if path.name.endswith((".nrrd", ".nhdr")) else _of_metaimage
    try:
        announced = read(path, content)
    except (ValueError, KeyError, IndexError) as err:
        what = f"no {err.args[0]}" if isinstance(err, KeyError) else err
        raise VolumeError(
            f"{path.name}: expected an image that ITK reads, got an unreadable header ({what}); "
            "check that the file is complete and of that type."
        ) from err
    sizes = [
        check_regular(file, f"a file with the voxels of {path.name}", VolumeError)
        for file in announced.files
    ]
    there = sum(sizes) if announced.files else path.stat().st_size - announced.offset
    promised = int(np.prod(announced.sizes, dtype=object)) * _BYTES[announced.type]
    if announced.packing == "text":  # a digit and a blank for each number, at least
        promised = 2 * promised // _BYTES[announced.type] - 1
    voxels = int(np.prod(announced.sizes, dtype=object))
    if not may_hold(there, promised, voxels, announced.packing == "gzip"):
        raise VolumeError(
            f"{path.name}: expected a complete image, got damaged or truncated data (a header of "
            f"shape {tuple(announced.sizes)} for {there} bytes); copy it again."
        )


def _of_nrrd(path: Path, content: bytes) -> _Announced:
    lines, offset = _lines(content, r"\s*$")
    if not lines[0].startswith("NRRD"):
        raise ValueError("not of NRRD")
    fields = {}
    for line in lines[1:]:
        key, colon, value = line.partition(": ")
        if colon and not line.startswith("#"):
            fields[key.strip().lower()] = value.strip()
    sizes = _sizes(fields["sizes"], int(fields["dimension"]))
    fields["space directions"]  # without, ITK makes a world up
    data = fields.get("data file", fields.get("datafile"))
    encoding = fields["encoding"].lower()
    if encoding not in _PACKING:  # bzip2 is one, which ITK allocates for and then lacks
        raise ValueError(f"encoding {encoding}")
    named: list[str] = []
    if data is not None and data.upper().startswith("LIST"):
        start = next(
            n for n, line in enumerate(lines) if line.lower().startswith(("data file", "datafile"))
        )
        named = [line.strip() for line in lines[start + 1 :] if line.strip()]
    elif data is not None:
        named = list(_named(data))
    return _Announced(
        sizes,
        _known(fields["type"]),
        _PACKING[encoding],
        [path.parent / name for name in named],
        offset,
    )


def _of_metaimage(path: Path, content: bytes) -> _Announced:
    lines, offset = _lines(content, r"\s*ElementDataFile\s*[=:]")
    fields = {}
    for line in lines:
        key, value = re.split(r"\s*[=:]\s*", line.strip(), maxsplit=1)
        fields[key] = value
    sizes = _sizes(fields["DimSize"], int(fields["NDims"]))
    for key in ("Offset", "Position", "Origin", "ElementSpacing", "TransformMatrix", "Rotation"):
        if not all(math.isfinite(float(word)) for word in fields.get(key, "").split()):
            raise ValueError(f"{key} {fields[key]}")
    channels = int(fields.get("ElementNumberOfChannels", "1"))
    data = fields["ElementDataFile"]
    named: list[str] = []
    if data.upper().startswith("LIST"):
        rest = content[offset:].decode("utf-8", "replace").splitlines()
        named = [line.strip() for line in rest if line.strip()]
    elif data.upper() != "LOCAL":
        named = list(_named(data))
    is_text = fields.get("BinaryData", "True").lower() in ("false", "0")
    is_packed = fields.get("CompressedData", "False").lower() in ("true", "1")
    return _Announced(
        [*sizes, *_sizes(str(channels), 1)],
        _known(fields["ElementType"]),
        "gzip" if is_packed else "text" if is_text else "none",
        [path.parent / name for name in named],
        offset,
    )


def _lines(content: bytes, last: str) -> tuple[list[str], int]:
    """Those of the header, its last one among them, and where the next would begin."""
    lines, offset = [], 0
    for raw in content.splitlines(keepends=True):
        offset += len(raw)
        if len(raw) > MOST_LINE_BYTES:
            raise ValueError(f"a line of {len(raw)} bytes")
        lines.append(raw.decode("latin-1").rstrip("\r\n"))
        if re.match(last, lines[-1]):
            return lines, offset
    if len(content) == MOST_HEADER_BYTES or not lines:
        raise ValueError("without an end" if lines else "empty")
    return lines, offset


def _sizes(text: str, dimensions: int) -> list[int]:
    sizes = [int(word) for word in text.split()]
    if not 1 <= dimensions <= MOST_DIMENSIONS or len(sizes) != dimensions or min(sizes) < 1:
        raise ValueError(f"sizes {text} of {dimensions} dimensions")
    return sizes


def _known(kind: str) -> str:
    if kind.lower() not in _BYTES:
        raise ValueError(f"type {kind}")
    return kind.lower()


def _named(data: str) -> Iterator[str]:
    """One file, or those of a pattern: `name%03d.raw first last step`."""
    words = data.split()
    if "%" not in data or len(words) < 4:
        yield data
        return
    numbers = range(int(words[1]), int(words[2]) + 1, int(words[3]))
    if len(numbers) > MOST_FILES:
        raise ValueError(f"{len(numbers)} files")
    if not (match := re.search(r"%(0?\d*)[du]", words[0])):
        raise ValueError(f"pattern {words[0]}")
    for number in numbers:
        yield words[0].replace(match[0], f"{number:{match[1]}d}")

"""Networks as OpenVINO compiled them, cached on disk, so that the next process starts sooner.

One file for each network, precision, processor and version, in the user's cache folder
(`runtime_cache.user_cache_folder`). Never an error: what is missing, damaged or cannot be written
is compiled again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
from isal import isal_zlib

from ..system.staging import staged_file
from .openvino_package import ov
from .runtime_cache import user_cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from jaxtyping import UInt8

    from ..bundle import Precision

log = logging.getLogger(__name__)

#: Of the files, and of how `openvino_graph` cuts networks: a change of either needs another.
FORMAT = 1
#: So many files stay, those used last; each is larger than its network.
KEPT = 4
SUFFIX = ".openvino"
_ALIGNMENT = 4096  # of a part in its file, so that OpenVINO may use it where it is mapped
_LENGTH_BYTES = 8  # at the end: of the table before them


@dataclass(frozen=True)
class PartHeader:
    """What is known of a part of a network; see `openvino_graph.Part`."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    in_float: bool


class CompiledFile:
    """The file of one network's compiled parts: one after the other, then a table in JSON.

    Args:
        network: The ONNX file.
        sha256: Of the ONNX file.
        precision: That the network is compiled for.
        core: Tells the processor.
    """

    def __init__(self, network: Path, sha256: str, precision: Precision, core: ov.Core) -> None:
        processor = core.get_property("CPU", "FULL_DEVICE_NAME")
        abilities = sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        made_by = json.dumps([FORMAT, sha256, ov.__version__, precision, processor, abilities])
        key = hashlib.sha256(made_by.encode()).hexdigest()
        self._name = f"{network.stem}.{key[:16]}{SUFFIX}"

    @property
    def path(self) -> Path:
        """The file; raises OSError if there is no place for it."""
        return user_cache_folder() / self._name

    def read(self) -> tuple[list[tuple[PartHeader, UInt8[np.ndarray, " n"]]], str] | None:
        """What `write` was given; None if it is not here, whole. Contents are mapped, not read."""
        try:
            content = np.memmap(self.path, np.uint8, mode="r")
            length = int.from_bytes(content[-_LENGTH_BYTES:].tobytes())
            end = len(content) - _LENGTH_BYTES - length
            table = json.loads(content[end:-_LENGTH_BYTES].tobytes())
            if isal_zlib.crc32(content[:end]) != table["crc32"]:
                raise ValueError("checksum")
            output, parts = str(table["output"]), []
            for part in table["parts"]:
                header = PartHeader(tuple(part["inputs"]), tuple(part["outputs"]), part["in_float"])
                parts.append((header, content[part["start"] : part["end"]]))
        except OSError as err:
            log.debug("openvino cache: %s", err)
            return None
        # An empty file, or a table that is none.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            log.warning("openvino cache: %s is damaged, and made again", self.path)
            return None
        with suppress(OSError):
            os.utime(self.path)  # used last
        return parts, output

    def write(self, parts: Iterable[tuple[PartHeader, memoryview]], output: str) -> None:
        """Keep a network; another process sees all of it or nothing.

        Args:
            parts: Each with what `CompiledModel.export_model` gave; not held longer than needed.
            output: Name of the network's output among the parts' values.
        """
        table, crc32 = [], 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(self.path) as path, path.open("wb") as stream:
                for header, content in parts:
                    start = stream.tell()
                    for piece in (content, bytes(-len(content) % _ALIGNMENT)):
                        crc32 = isal_zlib.crc32(piece, crc32)
                        stream.write(piece)
                    table.append(asdict(header) | {"start": start, "end": start + len(content)})
                trailer = json.dumps({"parts": table, "output": output, "crc32": crc32}).encode()
                stream.write(trailer + len(trailer).to_bytes(_LENGTH_BYTES))
        except OSError as err:
            log.info("openvino cache: %s; the next process compiles again", err)
        with suppress(OSError):  # another process may have done it
            for old in self._no_longer_wanted():
                old.unlink()

    def _no_longer_wanted(self) -> list[Path]:
        """All but those used last."""

        def age(file: Path) -> float:
            return time.time() - file.stat().st_mtime

        return sorted(self.path.parent.glob(f"[!.]*{SUFFIX}"), key=age)[KEPT:]

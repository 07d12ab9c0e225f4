"""What libraries compiled for this machine, kept between runs; kernels beside their engine."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from platformdirs import user_cache_path

log = logging.getLogger(__name__)


class RuntimeCacheFile:
    """Where TensorRT for RTX keeps an engine's kernels; whether they still fit is its to judge.

    Beside the engine, or in the user's cache folder if that cannot be written.
    Never an error: what is missing is compiled again.

    Args:
        engine: Its file.
        sha256: Of the engine, so that another engine of this name finds none.
    """

    def __init__(self, engine: Path, sha256: str) -> None:
        self._beside = engine.with_name(f"{engine.name}.{sha256[:12]}.cache")

    def read(self) -> Iterator[bytes]:
        """What was kept, in any place; the first that the library accepts is the one."""
        for folder in (user_cache_folder, lambda: self._beside.parent):
            with suppress(OSError):
                yield (folder() / self._beside.name).read_bytes()

    def write(self, content: bytes) -> None:
        """Keep the kernels; another process sees all of them or those before."""
        try:
            _write(self._beside, content)
        except OSError as err:
            try:
                folder = user_cache_folder()
                log.info("runtime cache: %s; kept in %s", err, folder)
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / self._beside.name, content)
            except OSError as also:
                log.warning("runtime cache: %s; the next run compiles again", also)


def user_cache_folder() -> Path:
    """Where this program may keep what it can make again.

    Raises:
        OSError: Nobody says where: the user has no home, as in some containers.

    """
    try:
        folder = user_cache_path("paramorph-rt", appauthor=False)
    except RuntimeError:
        folder = Path("~")  # what older versions of platformdirs give where there is no home
    if not folder.is_absolute():
        raise FileNotFoundError("no home folder; set XDG_CACHE_HOME")
    return folder


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well; its folder must exist.

    Raises:
        OSError: It cannot be written; nothing of it is left then.
    """
    number, staged = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as stream:
            yield stream
        os.chmod(staged, 0o644)  # mkstemp lets nobody else read
        os.replace(staged, path)
    except BaseException:
        os.unlink(staged)
        raise


def _write(path: Path, content: bytes) -> None:
    with writing(path) as stream:
        stream.write(content)

"""A cache of what libraries compiled for this machine, in the user's cache folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from platformdirs import user_cache_path

from ..system.staging import staged_file

log = logging.getLogger(__name__)


class RuntimeCacheFile:
    """The cache of an engine's kernels for TensorRT for RTX, which judges whether they still fit.

    In `kernel_folder`, and not beside the engine: kernels are code, and the manifest's hashes say
    nothing of what was compiled here. Never an error: what is missing is compiled again.

    Args:
        engine: Its file.
        sha256: Of the engine, so that another engine of this name does not use them.
    """

    def __init__(self, engine: Path, sha256: str) -> None:
        self._name = f"{engine.name}.{sha256[:12]}.cache"

    def read(self) -> bytes | None:
        """The cached kernels, if there are any."""
        try:
            return (kernel_folder() / self._name).read_bytes()
        except OSError as err:
            log.debug("runtime cache: %s", err)
            return None

    def write(self, content: bytes) -> None:
        """Keep the kernels; another process sees all of them or those before."""
        try:
            with staged_file(kernel_folder() / self._name) as path:
                path.write_bytes(content)
        except OSError as err:
            log.warning("runtime cache: %s; the next run compiles again", err)


def kernel_folder() -> Path:
    """The folder of compiled kernels, made if need be; nobody but its user may write there.

    Raises:
        OSError: There is no place for it, or others could put kernels there.
    """
    folder = user_cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    owned = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()  # Windows has none
    if not owned or (os.name == "posix" and status.st_mode & 0o022):
        raise PermissionError(f"{folder} can be written by others; chmod 700, or remove it")
    return folder


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

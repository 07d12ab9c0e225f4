"""The C library as `make cpp` left it, brought up to date, and its example program."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "runtime" / "cpp"
BUILD = ROOT / "build" / "cpp"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"]


def call(*command: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, encoding="utf-8", **options
    )


def checked(*command: object, **options) -> str:
    done = call(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def cmake() -> str | None:
    here = str(Path(sys.executable).parent)
    return shutil.which("cmake", path=os.pathsep.join([here, os.environ["PATH"]]))


def cpp_settings() -> dict[str, str]:
    """What `make cpp` told CMake; where nothing is built, the test is skipped."""
    cache = BUILD / "CMakeCache.txt"
    if not cache.is_file() or cmake() is None:
        pytest.skip("the C++ library is not built (make cpp)")
    return dict(re.findall(r"^(\w+):\w+=(.*)$", cache.read_text(encoding="utf-8"), re.MULTILINE))


def built_library() -> Path:
    cpp_settings()
    with (BUILD / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        checked(cmake(), "--build", BUILD)
    return BUILD / "libparamorph.so"


def installed(folder: Path) -> Path:
    """The library, as for an embedder."""
    built_library()
    checked(cmake(), "--install", BUILD, "--prefix", folder)
    return folder


def built_example(prefix: Path, folder: Path) -> Path:
    """The example program, built as somebody else's CMake project would be."""
    options = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_C_FLAGS={' '.join(WARNINGS)}"]
    checked(cmake(), "-S", SOURCE / "examples", "-B", folder, *options)
    checked(cmake(), "--build", folder)
    return folder / "register_raw"


def onnxruntime_of_the_wheel() -> Path:
    """Its library, which the loader does not find by its name."""
    (found,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return found

"""Run a command in its own process, so that neither its memory nor its crash is ours.

As a script, the small process that starts a command and measures it: what the system says of a
process's memory begins with that of the one which started it.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


@contextmanager
def empty_cache() -> Iterator[None]:
    """What engines keep between runs is kept for this block alone, in this process and others."""
    kept = "XDG_CACHE_HOME"
    before = os.environ.get(kept)
    with TemporaryDirectory() as folder:
        os.environ[kept] = folder
        try:
            yield
        finally:
            del os.environ[kept]
            if before is not None:
                os.environ[kept] = before


def limited_to(threads: int) -> dict[str, str]:
    """The environment of a command that shall use so many threads."""
    return os.environ | {name: str(threads) for name in THREAD_VARIABLES}


def run_isolated(command: Sequence[str], threads: int, timeout_s: float) -> str | None:
    """Run a command with so many threads and so much time.

    Returns:
        None if it ended well, else what went wrong, in a line.
    """
    try:
        done = subprocess.run(
            command,
            env=limited_to(threads),
            timeout=timeout_s,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {timeout_s:g} s"
    if done.returncode < 0:
        return _killed(done.returncode)
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return lines[-1][:300]
    return None


def run_measured(
    command: Sequence[str], threads: int, timeout_s: float
) -> dict[str, float] | dict[str, str]:
    """Run a command as `run_isolated` does, and measure its process from start to end.

    Returns:
        `seconds` on the clock, `cpu_seconds` of all its threads and `peak_mb` (10⁶ bytes); or
        `error`.
    """
    with NamedTemporaryFile("r", encoding="utf-8") as report:
        script = [sys.executable, "-S", __file__, report.name, str(timeout_s), *command]
        # The script stops the command; killed itself, it would leave the command running.
        if error := run_isolated(script, threads, timeout_s + 60):
            return {"error": error}
        return json.load(report)


def peak_mb() -> float:
    """Most memory (10⁶ bytes) that this process ever had in RAM, by Linux's account.

    Not getrusage's ru_maxrss, which starts at the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def _measure(report: str, timeout_s: str, *command: str) -> None:
    start = time.perf_counter()
    process = subprocess.Popen(command)
    try:
        code = process.wait(float(timeout_s))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        sys.exit(f"stopped after {float(timeout_s):g} s")
    seconds = time.perf_counter() - start
    if code:
        sys.exit(_killed(code) if code < 0 else code)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    usage = {
        "seconds": seconds,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_mb": used.ru_maxrss * 1024 / 1e6,
    }
    Path(report).write_text(json.dumps(usage), encoding="utf-8")


def _killed(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}"


if __name__ == "__main__":
    _measure(*sys.argv[1:])

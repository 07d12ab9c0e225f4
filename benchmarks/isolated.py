"""Run a command in its own process, so that neither its memory nor its crash is ours."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

THREAD_VARIABLES = (
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)


def run_isolated(command: Sequence[str], threads: int, timeout_s: float) -> str | None:
    """Run a command with so many threads and so much time.

    Returns:
        None if it ended well, else what went wrong, in a line.
    """
    environment = os.environ | {name: str(threads) for name in THREAD_VARIABLES}
    try:
        done = subprocess.run(
            command,
            env=environment,
            timeout=timeout_s,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"stopped after {timeout_s:g} s"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    if done.returncode > 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return lines[-1][:300]
    return None

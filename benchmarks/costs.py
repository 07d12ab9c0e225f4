"""What work costs: seconds, CPU seconds and memory, measured in one way everywhere.

Needs the standard library alone, so that a worker's memory is that of its work.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Timed(NamedTuple):
    """One call."""

    result: Any
    seconds: float
    cpu_seconds: float  # of all threads


def timed(call: Callable[[], Any]) -> Timed:
    """Call once, by the clock and by the CPU time of this process."""
    clock, cpu = time.perf_counter(), time.process_time()
    result = call()
    return Timed(result, time.perf_counter() - clock, time.process_time() - cpu)


def within(call: Callable[[], Any], runs: int, seconds: float, at_least: int) -> list[float]:
    """Seconds of up to `runs` calls; none starts after `seconds`, once there were `at_least`."""
    each: list[float] = []
    began = time.perf_counter()
    while len(each) < runs:
        if len(each) >= at_least and time.perf_counter() - began > seconds:
            break
        each.append(timed(call).seconds)
    return each


def peak_mb() -> float:
    """Most memory (10⁶ bytes) that this process ever had in RAM, by Linux's account.

    Not getrusage's ru_maxrss, which starts at the peak of the process that started this one.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def resident_mb() -> float:
    """Memory (10⁶ bytes) that this process has in RAM now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 1e6

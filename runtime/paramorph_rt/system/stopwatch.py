"""Seconds per stage of a registration."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Stopwatch:
    """Writes seconds per stage into a table and onto the log.

    >>> seconds = Stopwatch({})
    >>> with seconds("load"):
    ...     pass
    >>> list(seconds.table)
    ['load']
    """

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        log.info("%s …", stage)
        start = time.perf_counter()
        yield
        self.table[stage] = round(time.perf_counter() - start, 3)
        log.info("%s: %.1f s", stage, self.table[stage])

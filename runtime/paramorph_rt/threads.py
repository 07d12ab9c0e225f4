"""How many threads ITK uses, for as long as a block runs."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import SimpleITK as sitk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_lock = threading.Lock()
_limits: list[int] = []  # of the blocks that run now, in any thread
_unlimited = 0  # what the first of them found


@contextmanager
def itk_threads(count: int | None) -> Iterator[None]:
    """Limit ITK's threads in the whole process during the block; None leaves them alone.

    Where blocks overlap, in one thread or in several, the smallest limit holds for all: a block
    that needs one thread for equal bits gets it.
    """
    if count is None:
        yield
        return
    _change(_limits.append, count)
    try:
        yield
    finally:
        _change(_limits.remove, count)


def _change(how: Callable[[int], None], count: int) -> None:
    global _unlimited
    with _lock:
        if not _limits:
            _unlimited = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        how(count)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(min(_limits, default=_unlimited))

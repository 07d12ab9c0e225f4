"""How many threads ITK uses, for as long as a block runs, and work of ours on as many."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import SimpleITK as sitk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")

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


def mapped(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What the function returns for each item, on as many threads as ITK has.

    Raises:
        Exception: The first of what the calls raised, when all have ended.
    """
    with ThreadPoolExecutor(sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()) as pool:
        return list(pool.map(function, items))


def in_parallel(*calls: Callable[[], Result]) -> list[Result]:
    """What the calls return; see `mapped`."""
    return mapped(lambda call: call(), calls)


def _change(how: Callable[[int], None], count: int) -> None:
    global _unlimited
    with _lock:
        if not _limits:
            _unlimited = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        how(count)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(min(_limits, default=_unlimited))

"""How many threads ITK uses, for as long as a block runs, and work of ours in threads."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import SimpleITK as sitk

from .interrupts import held

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")

_lock = threading.Lock()
_limits: list[int] = []  # of the blocks that run now, in any thread
_unlimited = 0  # threads before the first of them


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


class Later(Generic[Result]):
    """What a thread computes from the moment that somebody starts it.

    Args:
        submit: Begins the work, such as a call of `Executor.submit`; called once.
    """

    def __init__(self, submit: Callable[[], Future[Result]]) -> None:
        self._submit = submit
        self._starting = threading.Lock()
        self._future: Future[Result] | None = None

    def start(self) -> Future[Result]:
        """Begin, unless it has begun."""
        with self._starting:
            if self._future is None:
                self._future = self._submit()
            return self._future

    def has_started(self) -> bool:
        """Whether the work has begun."""
        return self._future is not None

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._future is not None and self._future.done()

    def result(self) -> Result:
        """Begin, wait, and return; raises what the work raised."""
        return self.start().result()


def submitted(executor: Executor, work: Callable[[], Result]) -> Future[Result]:
    """`executor.submit(work)`, for executors that outlive an interrupt.

    One that is interrupted while it starts a thread forgets that thread, which then waits for work
    for ever, as the interpreter waits for the thread.
    """
    with held():
        return executor.submit(work)


def at_once(work: Callable[[], Result]) -> Future[Result]:
    """Work that is done when this returns, as a future."""
    future: Future[Result] = Future()
    try:
        future.set_result(work())
    except Exception as err:
        future.set_exception(err)
    return future


def _change(how: Callable[[int], None], count: int) -> None:
    global _unlimited
    with _lock:
        if not _limits:
            _unlimited = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        how(count)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(min(_limits, default=_unlimited))

from __future__ import annotations

import threading
import time

import pytest
import SimpleITK as sitk

from paramorph_rt.system.threads import in_parallel, itk_threads, mapped


@pytest.mark.parametrize("limit", [1, 2])
def test_as_many_at_once_as_allowed(limit):
    now, most, lock = 0, 0, threading.Lock()

    def square(number: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02 * (4 - number))  # the last ends first
        with lock:
            now -= 1
        return number**2

    with itk_threads(limit):
        assert mapped(square, range(4)) == [0, 1, 4, 9]
    assert most == limit


def test_first_error_is_raised_when_all_have_ended():
    ended = []

    def late() -> None:
        time.sleep(0.05)
        ended.append("late")

    def fails(said: str) -> None:
        raise ValueError(said)

    with itk_threads(3), pytest.raises(ValueError, match="first"):
        in_parallel(lambda: fails("first"), late, lambda: fails("second"))
    assert ended == ["late"]


def test_smallest_limit_of_overlapping_blocks_holds():
    def limit() -> int:
        return sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()

    before = limit()
    outer, inner = itk_threads(3), itk_threads(1)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)  # as of two threads, not nested
    with itk_threads(2), itk_threads(None):
        assert limit() == 1
    inner.__exit__(None, None, None)
    assert limit() == before

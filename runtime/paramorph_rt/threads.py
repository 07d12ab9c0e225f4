"""How many threads ITK uses, for as long as a block runs."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import SimpleITK as sitk

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def itk_threads(count: int | None) -> Iterator[None]:
    """Limit ITK's threads in the whole process during the block; None leaves them alone."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    if count is not None:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(count)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)

"""Functions of `kernels.c`, each spread over threads in slabs.

`kernels.c` is built with the package where there is a C compiler; wheels hold it. The library knows
no threads itself.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from typing import Self

    from jaxtyping import Float

_SLABS_PER_THREAD = 2  # so that a thread that is held up does not hold up all


def is_available() -> bool:
    """Whether this installation has the compiled passes."""
    return _path() is not None


class Slabs:
    """Threads, over which calls of a function of `kernels.c` are spread."""

    def __init__(self, threads: int | None) -> None:
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown()

    def over(self, function: Any, slices: int, arguments: Any) -> list[Any]:
        """Call a function for slabs of an axis, with arrays as pointers; what the calls return."""
        values = [
            a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else a for a in arguments
        ]
        size = -(-slices // (self._threads * _SLABS_PER_THREAD))
        starts = range(0, slices, size)
        results = list(
            self._pool.map(lambda i: function(*values, i, min(i + size, slices)), starts)
        )
        if function.restype is ctypes.c_int and any(results):
            raise MemoryError
        return results


def along_axis(
    array: Float[np.ndarray, "outer size inner"],
    weights: Float[np.ndarray, "target size"],
    threads: int | None = None,
) -> Float[np.ndarray, "outer target inner"]:
    """Products of a matrix whose rows are 0 but for some elements beside one another.

    The sums have one order whatever the threads, which those of linear algebra libraries have not.

    Raises:
        MissingDependencyError: The package was built without a C compiler.
    """
    outer, size, inner = array.shape
    target = len(weights)
    counts = weights != 0
    first = counts.argmax(axis=1).astype(np.int32)
    count = (size - counts[:, ::-1].argmax(axis=1) - first).astype(np.int32)
    widest = int(count.max())
    places = np.minimum(first[:, np.newaxis] + np.arange(widest), size - 1)
    rows = np.ascontiguousarray(np.take_along_axis(weights, places, axis=1), np.float32)
    out = np.empty((outer, target, inner), np.float32)
    source = np.ascontiguousarray(array, np.float32)
    arguments = source, size, inner, target, first, count, rows, widest, out
    with Slabs(threads) as slabs:
        slabs.over(library().rescale, outer * target, arguments)
    return out


def _path() -> str | None:
    spec = find_spec(f"{__package__}.kernels")
    return spec.origin if spec else None


@cache
def library() -> ctypes.CDLL:
    path = _path()
    if path is None:
        raise MissingDependencyError(
            "refinement: expected compiled passes, got an installation made without a C compiler; "
            "install a wheel, or install again with a compiler."
        )
    library = ctypes.CDLL(path)
    library.longest.restype = ctypes.c_float
    return library

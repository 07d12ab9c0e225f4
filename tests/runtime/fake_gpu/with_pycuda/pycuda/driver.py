"""The names, arguments and types of `pycuda.driver`, by ctypes.

As PyCUDA does, it gives something back only where its context is current, or in the thread that
retained the context; elsewhere it warns and keeps it (`scoped_context_activation` in its cuda.hpp).
"""

from __future__ import annotations

import ctypes
import threading
import warnings

import numpy as np

_DRIVER = ctypes.CDLL("libcuda.so.1")


class Error(Exception):
    """Base of PyCUDA's errors."""


class LogicError(Error):
    """A call that the driver refuses."""


def _call(function: str, *arguments) -> None:
    status = getattr(_DRIVER, function)(*arguments)
    if status:
        raise LogicError(f"{function} failed: error {status}")


def init(flags: int = 0) -> None:
    _call("cuInit", flags)


_stack = threading.local()
_owners: list[int] = []  # threads that retained the context


class Context:
    def push(self) -> None:
        _call("cuCtxPushCurrent_v2", None)
        _stack.depth = getattr(_stack, "depth", 0) + 1

    @staticmethod
    def pop() -> None:
        _call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        _stack.depth -= 1

    @staticmethod
    def synchronize() -> None:
        _call("cuCtxSynchronize")


class Device:
    def __init__(self, number: int) -> None:
        _call("cuDeviceGet", ctypes.byref(ctypes.c_int()), number)

    def retain_primary_context(self) -> Context:
        _owners.append(threading.get_ident())
        return Context()


class DeviceAllocation:
    def __init__(self, size: int) -> None:
        self._address = ctypes.c_void_p()
        _call("cuMemAlloc_v2", ctypes.byref(self._address), ctypes.c_size_t(size))

    def __int__(self) -> int:
        return self._address.value

    def __del__(self) -> None:
        _in_context("cuMemFree_v2", self._address)


def mem_alloc(size: int) -> DeviceAllocation:
    return DeviceAllocation(size)


class _Pinned:
    def __init__(self, size: int) -> None:
        self._address = ctypes.c_void_p()
        _call("cuMemHostAlloc", ctypes.byref(self._address), ctypes.c_size_t(size), 0)
        self.__array_interface__ = {
            "data": (self._address.value, False),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }

    def __del__(self) -> None:
        _in_context("cuMemFreeHost", self._address)


def pagelocked_empty(shape, dtype, order="C", mem_flags=0) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.asarray(_Pinned(size)).view(dtype).reshape(shape)


class Stream:
    def __init__(self, flags: int = 0) -> None:
        self._handle = ctypes.c_void_p()
        _call("cuStreamCreate", ctypes.byref(self._handle), flags)

    @property
    def handle(self) -> int:
        return self._handle.value

    def synchronize(self) -> None:
        _call("cuStreamSynchronize", self._handle)

    def __del__(self) -> None:
        _in_context("cuStreamDestroy_v2", self._handle)


def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream | None = None) -> None:
    _copy("cuMemcpyHtoDAsync_v2", int(dest), src.ctypes.data, src.nbytes, stream)


def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream | None = None) -> None:
    _copy("cuMemcpyDtoHAsync_v2", dest.ctypes.data, int(src), dest.nbytes, stream)


def _copy(function: str, to: int, source: int, size: int, stream: Stream | None) -> None:
    handle = None if stream is None else stream._handle
    _call(function, ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), handle)


def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream | None = None) -> None:
    _copy("cuMemcpyDtoDAsync_v2", int(dest), int(src), size, stream)


def _in_context(function: str, address: ctypes.c_void_p) -> None:
    if getattr(_stack, "depth", 0) == 0 and threading.get_ident() not in _owners:
        warnings.warn("cannot activate out-of-thread context", stacklevel=2)
        return
    Context().push()
    getattr(_DRIVER, function)(address)
    Context.pop()

"""Memory, streams and events of the GPU: by cuda-python, or by PyCUDA where that is wanted.

Device memory is an address, a stream its handle: the integers that TensorRT takes, and that other
programs can hand in. All calls but `open_device` and `active` need the device to be active, and so
does giving something back: PyCUDA refuses it elsewhere.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..errors import BackendError, MissingDependencyError
from ..system.optional import import_optional

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

CHOICE = "PARAMORPH_CUDA"  # environment variable: a key of `_KINDS`


class Memory(Protocol):
    """Device memory, given back when nobody holds this object any more."""

    address: int


class Stream(Protocol):
    """A queue of work that the GPU does in order, beside other streams."""

    handle: int

    def synchronize(self) -> None:
        """Wait until all of it is done."""


class Device(Protocol):
    """The first visible GPU, in the context that it shares with other libraries of the process.

    Attributes:
        library: What drives it.
    """

    library: str

    def active(self) -> AbstractContextManager[None]:
        """Make it this thread's current device for a block."""
        ...

    def allocate(self, size: int) -> Memory:
        """So many bytes of device memory."""
        ...

    def pinned(self, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 array in host memory that the GPU reads and writes by itself."""
        ...

    def stream(self) -> Stream:
        """A stream that does not wait for the default stream."""
        ...

    def upload(self, address: int, array: np.ndarray, stream: Stream) -> None:
        """Enqueue a copy to the device; `array` is pinned and stays as it is until then."""
        ...

    def download(self, array: np.ndarray, address: int, stream: Stream) -> None:
        """Enqueue a copy from the device; `array` is pinned."""
        ...

    def copy(self, to: int, address: int, size: int, stream: Stream) -> None:
        """Enqueue a copy of so many bytes within the device."""
        ...

    def event(self) -> Any:
        """A mark that one stream passes and others wait for."""
        ...

    def record(self, event: Any, stream: int) -> None:
        """Put the mark behind all that was enqueued on any stream so far."""
        ...

    def wait(self, event: Any, stream: int) -> None:
        """Let any stream go on only when the mark is passed."""
        ...


class _PyCudaDevice:
    library = "pycuda"

    def __init__(self) -> None:
        self._cuda = cuda = import_optional("pycuda.driver", "pycuda", "GPU")
        with self._failures():
            cuda.init()
            self._context = cuda.Device(0).retain_primary_context()

    @contextmanager
    def active(self) -> Iterator[None]:
        with self._failures():
            self._context.push()
            try:
                yield
            finally:
                self._cuda.Context.pop()

    def allocate(self, size: int) -> Memory:
        return _PyCudaMemory(self._cuda.mem_alloc(size))

    def pinned(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._cuda.pagelocked_empty(shape, np.float32)

    def stream(self) -> Stream:
        return self._cuda.Stream(1)  # CU_STREAM_NON_BLOCKING, which PyCUDA has no name for

    def upload(self, address: int, array: np.ndarray, stream: Any) -> None:
        self._cuda.memcpy_htod_async(address, array, stream)

    def download(self, array: np.ndarray, address: int, stream: Any) -> None:
        self._cuda.memcpy_dtoh_async(array, address, stream)

    def copy(self, to: int, address: int, size: int, stream: Any) -> None:
        self._cuda.memcpy_dtod_async(to, address, size, stream)

    # PyCUDA records events only on streams of its own making, so the host waits instead.
    def event(self) -> Any:
        return None

    def record(self, event: Any, stream: int) -> None:
        pass

    def wait(self, event: Any, stream: int) -> None:
        self._cuda.Context.synchronize()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as err:
            raise _refusal(str(err)) from err


class _PyCudaMemory:
    def __init__(self, allocation: Any) -> None:
        self._allocation = allocation  # frees itself
        self.address = int(allocation)


class _CudaPythonDevice:
    library = "cuda-python"

    def __init__(self) -> None:
        self._driver = driver = import_optional("cuda.bindings.driver", "tensorrt", "GPU")
        try:
            self._call(driver.cuInit, 0)
        except RuntimeError as err:  # how the bindings say that there is no driver
            raise _refusal(str(err)) from err
        self._context = self._call(
            driver.cuDevicePrimaryCtxRetain, self._call(driver.cuDeviceGet, 0)
        )

    @contextmanager
    def active(self) -> Iterator[None]:
        self._call(self._driver.cuCtxPushCurrent, self._context)
        try:
            yield
        finally:
            self._call(self._driver.cuCtxPopCurrent)

    def allocate(self, size: int) -> Memory:
        return _CudaPythonMemory(self, size)

    def pinned(self, shape: tuple[int, ...]) -> np.ndarray:
        count = int(np.prod(shape))
        address = int(self._call(self._driver.cuMemHostAlloc, count * 4, 0))
        buffer = (ctypes.c_float * count).from_address(address)
        self._free_with(buffer, self._driver.cuMemFreeHost, address)
        return np.ctypeslib.as_array(buffer).reshape(shape)

    def stream(self) -> Stream:
        return _CudaPythonStream(self)

    def upload(self, address: int, array: np.ndarray, stream: Stream) -> None:
        self._call(
            self._driver.cuMemcpyHtoDAsync, address, array.ctypes.data, array.nbytes, stream.handle
        )

    def download(self, array: np.ndarray, address: int, stream: Stream) -> None:
        self._call(
            self._driver.cuMemcpyDtoHAsync, array.ctypes.data, address, array.nbytes, stream.handle
        )

    def copy(self, to: int, address: int, size: int, stream: Stream) -> None:
        self._call(self._driver.cuMemcpyDtoDAsync, to, address, size, stream.handle)

    def event(self) -> Any:
        flags = self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
        return _CudaPythonHandle(
            self, self._call(self._driver.cuEventCreate, flags), self._driver.cuEventDestroy
        )

    def record(self, event: Any, stream: int) -> None:
        self._call(self._driver.cuEventRecord, event.handle, stream)

    def wait(self, event: Any, stream: int) -> None:
        self._call(self._driver.cuStreamWaitEvent, stream, event.handle, 0)

    def _call(self, function: Any, *arguments: Any) -> Any:
        status, *results = function(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise _refusal(f"{function.__name__}: {status.name}")
        return results[0] if results else None

    def _free_with(self, owner: Any, function: Any, handle: Any) -> None:
        """Give something back when nobody holds its owner; the process's end frees the rest."""

        def free() -> None:  # on whatever thread; an error here has nobody to go to
            self._driver.cuCtxPushCurrent(self._context)
            function(handle)
            self._driver.cuCtxPopCurrent()

        weakref.finalize(owner, free).atexit = False


class _CudaPythonHandle:
    """An event or stream, destroyed with this object."""

    def __init__(self, device: _CudaPythonDevice, handle: Any, destroy: Any) -> None:
        self.handle = int(handle)
        device._free_with(self, destroy, self.handle)


class _CudaPythonMemory:
    def __init__(self, device: _CudaPythonDevice, size: int) -> None:
        self.address = int(device._call(device._driver.cuMemAlloc, size))
        device._free_with(self, device._driver.cuMemFree, self.address)


class _CudaPythonStream(_CudaPythonHandle):
    def __init__(self, device: _CudaPythonDevice) -> None:
        driver = device._driver
        flags = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
        super().__init__(device, device._call(driver.cuStreamCreate, flags), driver.cuStreamDestroy)
        self._device = device

    def synchronize(self) -> None:
        self._device._call(self._device._driver.cuStreamSynchronize, self.handle)


def _refusal(what: str) -> BackendError:
    return BackendError(
        f"GPU: expected memory and time for the network, got {what}; check nvidia-smi, or choose "
        "--backend onnxruntime for the CPU."
    )


_KINDS: dict[str, type[Device]] = {"cuda-python": _CudaPythonDevice, "pycuda": _PyCudaDevice}


def open_device() -> Device:
    """The first visible GPU, by what `$PARAMORPH_CUDA` names, else by the first that is installed.

    Raises:
        BackendError: The GPU cannot be used, or the variable names neither library.
        MissingDependencyError: The library is not installed.
    """
    chosen = os.environ.get(CHOICE, "")
    if chosen and chosen not in _KINDS:
        raise BackendError(
            f"${CHOICE}: expected {' or '.join(_KINDS)}, got {chosen}; choose one, or unset it."
        )
    reasons = []
    for name in [chosen] if chosen else _KINDS:
        try:
            return _KINDS[name]()
        except ImportError as err:
            reasons.append(str(err))
    raise MissingDependencyError(
        f"GPU: expected {chosen or 'cuda-python or PyCUDA'} for its memory, got "
        f"{' and '.join(reasons)}; pip install cuda-bindings, of the version of your driver's CUDA."
    )

"""TensorRT and TensorRT for RTX: an engine of the bundle, run by the library that built it."""

from __future__ import annotations

import logging
import math
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..bundle.names import CHANNELS, INPUTS, LIBRARIES, OUTPUTS
from ..errors import BackendError
from ..system.optional import import_optional
from .device_memory import Device, open_device
from .interface import Closable, check_displacement, prove
from .runtime_cache import RuntimeCacheFile

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

    from jaxtyping import Float

    from ..bundle import Bundle, EngineEntry, Precision
    from ..bundle.names import Flavour

log = logging.getLogger(__name__)

OUTPUT = OUTPUTS[0]
PLUGIN = ("GridSample3D", "1", "")  # type, version, namespace


class EngineBackend(Closable):
    """An engine with its buffers: pinned on the host, allocated once on the device.

    Several threads may call it; the GPU runs one pair after another, in a stream of its own and at
    addresses that stay, so that TensorRT for RTX may replay what it once captured. `run` takes
    arrays, `enqueue` takes device memory and a stream of the caller's.

    Args:
        bundle: A bundle.
        entry: One of its engines, built by this version of the library for this GPU.
        library: `tensorrt` or `tensorrt_rtx`.
        device: Where its memory comes from; None is `open_device`'s.
        cuda_graph: Let TensorRT for RTX replay all kernels as one CUDA graph.

    Raises:
        BundleError: The engine's file was altered.
        BackendError: The library or the GPU refuses the engine.
        MissingDependencyError: Neither cuda-python nor PyCUDA is installed.
    """

    def __init__(
        self,
        bundle: Bundle,
        entry: EngineEntry,
        library: ModuleType,
        device: Device | None = None,
        cuda_graph: bool = True,
    ) -> None:
        self.name = entry.flavour
        self.precision = cast("Precision", entry.precision)
        self._path = bundle.folder / entry.file
        self._shape = entry.shape
        self._lock = threading.Lock()
        self._logger = _logger(library)
        self._gpu: dict[str, Any] = {}  # what has to be given back, in the order of its making
        content = bundle.verified_bytes(entry.file)
        self._device = device or open_device()
        with self._device.active():
            try:
                self._open(bundle, entry, library, content, cuda_graph)
            except BaseException:
                self._give_back()
                raise
        try:
            self._warm_up(runs=3 if self._cache is not None and cuda_graph else 1)
        except BaseException:
            self.close()
            raise

    def run(
        self, moving: Float[np.ndarray, "i j k"], fixed: Float[np.ndarray, "i j k"]
    ) -> Float[np.ndarray, "3 i j k"]:
        """See `Network.run`."""
        for volume in (moving, fixed):
            if volume.shape != self._shape:
                raise BackendError(
                    f"{self._path.name}: expected volumes of shape {self._shape}, got "
                    f"{volume.shape}; choose an engine that was built for this shape."
                )
        with self._lock, self._device.active():
            host, memory, stream = self._parts("host", "memory", "stream")
            for name, volume in zip(INPUTS, (moving, fixed), strict=True):
                np.copyto(host[name][0, 0], volume)
                self._device.upload(memory[name].address, host[name], stream)
            self._launch()
            displacement = host[OUTPUT]
            self._device.download(displacement, memory[OUTPUT].address, stream)
            stream.synchronize()
            return check_displacement(displacement, self._shape, self._path).copy()

    def enqueue(
        self, moving: int, fixed: int, displacement: int, warped: int | None = None, *, stream: int
    ) -> None:
        """Run on memory of the caller's, in the order of its stream.

        Does not wait for the end (with PyCUDA, which knows no streams but its own, it does).
        Addresses are of float32 arrays in C order on this GPU, in the context that CUDA's runtime,
        PyTorch and CuPy use too. All stay as they are until the stream has passed. They are copied
        to and from memory of the engine's, which takes a small part of a millisecond and lets the
        engine keep its addresses and its stream, so that any stream will do, the default one too.
        Whether the displacement is finite is the caller's to check.

        >>> backend.enqueue(  # doctest: +SKIP
        ...     moving.data_ptr(), fixed.data_ptr(), displacement.data_ptr(),
        ...     stream=torch.cuda.current_stream().cuda_stream,
        ... )

        Args:
            moving: Address of (1, 1, i, j, k), in [0, 1] on the network grid.
            fixed: Likewise.
            displacement: Address of (1, 3, i, j, k), written: see `Network.run`.
            warped: Address of (1, 1, i, j, k), written; None if it is not wanted.
            stream: CUDA stream handle; 0 is the default stream.

        Raises:
            BackendError: CUDA refuses an address, TensorRT the launch, or the engine gives no
                warped volume.
        """
        with self._lock, self._device.active():
            memory, own, event = self._parts("memory", "stream", "event")
            if warped is not None and "warped" not in memory:
                raise BackendError(
                    f"{self._path.name}: expected no address for a warped volume, which this "
                    "engine does not give, got one; warp the moving volume by the displacement."
                )
            self._device.record(event, stream)
            self._device.wait(event, own.handle)
            try:
                for name, address in zip(INPUTS, (moving, fixed), strict=True):
                    self._device.copy(memory[name].address, address, self._bytes(name), own)
                self._launch()
                for name, target in ((OUTPUT, displacement), ("warped", warped)):
                    if target is not None:
                        self._device.copy(target, memory[name].address, self._bytes(name), own)
            except BaseException:
                own.synchronize()  # the caller's memory is its own again
                raise
            self._device.record(event, own.handle)
            self._device.wait(event, stream)

    def _release(self) -> None:
        """Wait for what was enqueued and give all memory back."""
        with self._lock, self._device.active():
            self._give_back()

    def __del__(self) -> None:
        if getattr(self, "_gpu", None):
            with suppress(Exception):  # at the interpreter's end nobody would handle it
                self.close()

    def _open(
        self,
        bundle: Bundle,
        entry: EngineEntry,
        library: ModuleType,
        content: bytes,
        cuda_graph: bool,
    ) -> None:
        """All that lives on the GPU."""
        gpu = self._gpu
        gpu["stream"] = self._device.stream()
        gpu["event"] = self._device.event()
        gpu["runtime"] = library.Runtime(self._logger)
        if entry.plugin is not None:
            self._load_plugin(library, bundle.verified_path(entry.plugin))
        gpu["engine"] = gpu["runtime"].deserialize_cuda_engine(content)
        if gpu["engine"] is None:
            raise self._refusal(f"an engine that {library.__name__} {library.__version__} loads")
        names = self._check_tensors(library)
        self._cache = None
        if entry.flavour == "tensorrt-rtx":
            self._cache = RuntimeCacheFile(self._path, bundle.sha256(entry.file))
        gpu["context"] = self._create_context(library, cuda_graph)
        gpu["memory"] = {name: self._device.allocate(self._bytes(name)) for name in names}
        gpu["host"] = {
            name: self._device.pinned((1, CHANNELS[name], *self._shape))
            for name in (*INPUTS, OUTPUT)
        }
        for name, memory in gpu["memory"].items():
            if not gpu["context"].set_tensor_address(name, memory.address):
                raise self._refusal(f"memory for {name} that TensorRT takes")

    def _give_back(self) -> None:
        if "stream" in self._gpu:
            with suppress(BackendError):  # of a GPU that is gone, the rest goes all the same
                self._gpu["stream"].synchronize()
        while self._gpu:  # contexts before their engine, memory while the device is active
            self._gpu.popitem()

    def _parts(self, *names: str) -> list[Any]:
        self._check_open()
        return [self._gpu[name] for name in names]

    def _bytes(self, name: str) -> int:
        return 4 * CHANNELS[name] * math.prod(self._shape)

    def _launch(self) -> None:
        self._logger.errors.clear()
        if not self._gpu["context"].execute_async_v3(self._gpu["stream"].handle):
            raise self._refusal("a launch")

    def _load_plugin(self, library: ModuleType, path: Path) -> None:
        """GridSample3D, once in a process: the registry refuses the same name twice."""
        registry = library.get_plugin_registry()
        if registry.get_creator(*PLUGIN) is None and registry.load_library(str(path)) is None:
            raise self._refusal(f"a plugin library for {library.__name__} in {path.name}")

    def _check_tensors(self, library: ModuleType) -> list[str]:
        """Names, if shapes and types are right; before anything is allocated by them."""
        engine = self._gpu["engine"]
        names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        tensors = {
            name: (tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name))
            for name in names
        }
        expected = {n: ((1, c, *self._shape), library.float32) for n, c in CHANNELS.items()}
        if "warped" not in tensors:
            del expected["warped"]
        if tensors != expected:
            raise BackendError(
                f"{self._path.name}: expected float32 tensors {', '.join(CHANNELS)} at "
                f"{self._shape}, got {', '.join(f'{n} {s}' for n, (s, _) in tensors.items())}; "
                "build the engine again."
            )
        return names

    def _create_context(self, library: ModuleType, cuda_graph: bool) -> Any:
        engine = self._gpu["engine"]
        if self._cache is None:
            context = engine.create_execution_context()
        else:
            config = engine.create_runtime_config()
            kernels = config.create_runtime_cache()
            cached = self._cache.read()
            is_usable = cached is not None and kernels.deserialize(cached)
            self._cached = cached if is_usable else None
            config.set_runtime_cache(kernels)
            if cuda_graph:
                config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self._gpu["kernels"] = kernels
            context = engine.create_execution_context(config)
        if context is None:
            raise self._refusal("memory for its activations")
        return context

    def _warm_up(self, runs: int) -> None:
        """Run, which compiles what is missing, and cache the kernels.

        Args:
            runs: The second captures a CUDA graph, the third is the first to replay it; none of
                this is left to the first real pair.
        """
        for _ in range(runs):
            prove(self, self._shape)
        if self._cache is not None:
            kernels = bytes(self._gpu["kernels"].serialize())
            if kernels != self._cached:
                self._cache.write(kernels)

    def _refusal(self, expected: str) -> BackendError:
        what = self._logger.errors[0] if self._logger.errors else "a refusal without a reason"
        return BackendError(
            f"{self._path.name}: expected {expected}, got {what.rstrip('.')}; build the engine "
            "again on or for this machine, or choose another --backend."
        )


def import_library(flavour: Flavour) -> ModuleType:
    """`tensorrt` or `tensorrt_rtx`.

    Raises:
        MissingDependencyError: It is not installed, or its own libraries are missing.
    """
    return import_optional(LIBRARIES[flavour], flavour, flavour)


def _logger(library: ModuleType) -> Any:
    """TensorRT's messages: errors for our own messages, the rest for debugging."""
    severity = library.ILogger.Severity

    class Logger(library.ILogger):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, level: Any, message: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR):
                self.errors.append(message)
            log.debug("%s", message)

    return Logger()

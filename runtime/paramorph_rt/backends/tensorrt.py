"""TensorRT and TensorRT for RTX: an engine of the bundle, run by the library that built it."""

from __future__ import annotations

import logging
import math
import threading
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import BackendError
from ..optional import import_optional
from . import check_displacement, prove
from .device_memory import Device, open_device
from .runtime_cache import RuntimeCacheFile

if TYPE_CHECKING:
    from types import ModuleType
    from typing import Literal

    from jaxtyping import Float

    from ..bundle import Bundle, EngineEntry
    from . import Precision

    Flavour = Literal["tensorrt", "tensorrt-rtx"]

log = logging.getLogger(__name__)

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INPUTS, OUTPUT = ("moving", "fixed"), "displacement"
CHANNELS = {"moving": 1, "fixed": 1, "displacement": 3, "warped": 1}


class EngineBackend:
    """An engine with its buffers: pinned on the host, allocated once on the device.

    Several threads may call it; the GPU runs one pair after another. `run` takes arrays, `enqueue`
    takes device memory and a stream of the caller's.

    Args:
        bundle: A bundle.
        entry: One of its engines, built by this version of the library for this GPU.
        library: `tensorrt` or `tensorrt_rtx`.
        device: Where its memory comes from; None is the first visible GPU.
        cuda_graph: Let TensorRT for RTX replay all kernels as one CUDA graph.

    Raises:
        BundleError: The engine's file was altered.
        BackendError: The library or the GPU refuses the engine.
        MissingDependencyError: Neither PyCUDA nor cuda-python is installed.
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
        content = bundle.verified_bytes(entry.file)
        self._device = device or open_device()
        with self._device.active():
            self._runtime = library.Runtime(self._logger)
            if entry.has_plugin:
                self._runtime.engine_host_code_allowed = True
            self._engine = self._runtime.deserialize_cuda_engine(content)
            if self._engine is None:
                raise self._refusal(
                    f"an engine that {library.__name__} {library.__version__} loads"
                )
            self._check_tensors(library)
            self._cache = None
            if entry.flavour == "tensorrt-rtx":
                self._cache = RuntimeCacheFile(self._path, bundle.sha256(entry.file))
            self._context = self._create_context(library, cuda_graph)
            self._stream = self._device.stream()
            self._foreign = self._device.event()  # behind the caller's last work
            self._is_foreign = False
            shapes = {name: (1, CHANNELS[name], *self._shape) for name in self._names}
            self._memory = {n: self._device.allocate(4 * math.prod(s)) for n, s in shapes.items()}
            self._host = {n: self._device.pinned(shapes[n]) for n in (*INPUTS, OUTPUT)}
        self._keep_kernels()

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
            for name, volume in zip(INPUTS, (moving, fixed), strict=True):
                np.copyto(self._host[name][0, 0], volume)
                self._device.upload(self._memory[name].address, self._host[name], self._stream)
            self._execute({n: m.address for n, m in self._memory.items()}, self._stream.handle)
            found = self._host[OUTPUT]
            self._device.download(found, self._memory[OUTPUT].address, self._stream)
            self._stream.synchronize()
            return check_displacement(found, self._shape, self._path).copy()

    def enqueue(
        self, moving: int, fixed: int, displacement: int, warped: int | None = None, *, stream: int
    ) -> None:
        """Run on memory of the caller's, in its stream, without waiting for the end.

        Addresses are of float32 arrays in C order on this GPU, in the context that CUDA's runtime,
        PyTorch and CuPy use too; TensorRT wants them to be multiples of 256. All stay as they are
        until the stream has passed. Whether the displacement is finite is the caller's to check.

        >>> backend.enqueue(  # doctest: +SKIP
        ...     moving.data_ptr(), fixed.data_ptr(), displacement.data_ptr(),
        ...     stream=torch.cuda.current_stream().cuda_stream,
        ... )

        Args:
            moving: Address of (1, 1, i, j, k), in [0, 1] on the network grid.
            fixed: Likewise.
            displacement: Address of (1, 3, i, j, k), written: see `Network.run`.
            warped: Address of (1, 1, i, j, k), written; None if it is not wanted.
            stream: CUDA stream handle.

        Raises:
            BackendError: TensorRT refuses an address or the launch.
        """
        given = {"moving": moving, "fixed": fixed, OUTPUT: displacement}
        if warped is not None:
            given["warped"] = warped
        with self._lock, self._device.active():
            self._execute({n: m.address for n, m in self._memory.items()} | given, stream)
            self._device.record(self._foreign, stream)
            self._is_foreign = True

    def _execute(self, addresses: dict[str, int], stream: int) -> None:
        if self._is_foreign:  # activations are shared with what may still run elsewhere
            self._device.wait(self._foreign, stream)
            self._is_foreign = False
        self._logger.errors.clear()
        for name, address in addresses.items():
            if not self._context.set_tensor_address(name, address):
                raise self._refusal(f"memory for {name} that TensorRT takes")
        if not self._context.execute_async_v3(stream):
            raise self._refusal("a launch")

    def _check_tensors(self, library: ModuleType) -> None:
        """Names, shapes and types, before anything is allocated by them."""
        engine = self._engine
        self._names = [engine.get_tensor_name(n) for n in range(engine.num_io_tensors)]
        found = {
            name: (tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name))
            for name in self._names
        }
        expected = {n: ((1, c, *self._shape), library.float32) for n, c in CHANNELS.items()}
        if "warped" not in found:
            del expected["warped"]
        if found != expected:
            raise BackendError(
                f"{self._path.name}: expected float32 tensors {', '.join(CHANNELS)} at "
                f"{self._shape}, got {', '.join(f'{n} {s}' for n, (s, _) in found.items())}; build "
                "the engine again."
            )

    def _create_context(self, library: ModuleType, cuda_graph: bool) -> Any:
        if self._cache is None:
            context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            self._kernels = config.create_runtime_cache()
            self._kept = next(filter(self._kernels.deserialize, self._cache.read()), None)
            config.set_runtime_cache(self._kernels)
            if cuda_graph:
                config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        if context is None:
            raise self._refusal("memory for its activations")
        return context

    def _keep_kernels(self) -> None:
        """Run once, which compiles what is missing, and keep the kernels."""
        prove(self, self._shape)
        if self._cache is not None:
            kernels = bytes(self._kernels.serialize())
            if kernels != self._kept:
                self._cache.write(kernels)

    def _refusal(self, expected: str) -> BackendError:
        what = self._logger.errors[0] if self._logger.errors else "a refusal without a reason"
        return BackendError(
            f"{self._path.name}: expected {expected}, got {what.rstrip('.')}; build the engine "
            "again on or for this machine, or choose another --backend."
        )


def engines_for(
    bundle: Bundle, flavour: Flavour, precision: str, compute_capability: str
) -> list[EngineEntry]:
    """The engines of a bundle that a GPU could run, each with the right version of the library.

    Raises:
        BackendError: There is none.
    """
    engines = list(bundle.engines)
    for what, value in (
        ("flavour", flavour),
        ("shape", bundle.inputs.grid.shape),
        ("precision", precision),
        ("compute_capability", compute_capability),
    ):
        build = _build_command(bundle, flavour, compute_capability)
        engines = _those(engines, what, value, f"{bundle.name}: expected an engine", build)
    return engines


def engine_of_version(engines: list[EngineEntry], version: str, bundle: Bundle) -> EngineEntry:
    """The one of `engines_for` that the installed library built.

    Raises:
        BackendError: Another version built them; the message holds the command that builds anew.
    """
    first = engines[0]
    build = _build_command(bundle, first.flavour, first.compute_capability)
    subject = f"{first.file}: expected an engine of {first.flavour}"
    return _those(engines, "version", version, subject, build)[0]


def _those(
    engines: list[EngineEntry], what: str, value: Any, subject: str, build: str
) -> list[EngineEntry]:
    chosen = [engine for engine in engines if getattr(engine, what) == value]
    if not chosen:
        others = ", ".join(dict.fromkeys(str(getattr(engine, what)) for engine in engines))
        raise BackendError(
            f"{subject} for {what.replace('_', ' ')} {value}, got {others or 'no engine'}; build "
            f"it: {build}"
        )
    return chosen


def _build_command(bundle: Bundle, flavour: str, compute_capability: str) -> str:
    if bundle.comes_along:
        return f"make engine in a clone of the project, then --model build/bundles/{bundle.name}"
    return (
        f"python export/build_engine.py --bundle {bundle.folder} --flavour {flavour} --target "
        f"sm{compute_capability.replace('.', '')}"
    )


def import_library(flavour: Flavour) -> ModuleType:
    """`tensorrt` or `tensorrt_rtx`.

    Raises:
        MissingDependencyError: It is not installed, or its own libraries are not found.
    """
    return import_optional(MODULES[flavour], flavour, flavour)


def _logger(library: ModuleType) -> Any:
    """TensorRT's messages: errors kept for ours, the rest for whoever debugs."""
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

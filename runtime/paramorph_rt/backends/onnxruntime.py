"""ONNX Runtime: on the CPU the engine of the base install, on a GPU by one of its providers."""

from __future__ import annotations

import io
import os
import re
import sys
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError, MissingDependencyError, install_command
from ..system.optional import import_optional
from .interface import Closable, check_output
from .runtime_cache import kernel_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jaxtyping import Float

    from ..bundle import Precision

ort = import_optional("onnxruntime", None, "onnxruntime")

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"
NAMES = {
    CPU: "onnxruntime-cpu",
    CUDA: "onnxruntime-cuda",
    TENSORRT: "onnxruntime-tensorrt",
    TENSORRT_RTX: "onnxruntime-tensorrt-rtx",
}
IN_MEMORY = "add_external_initializers_from_files_in_memory"
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
# Both packages hold one module; in a folder of its own, ahead on the path, the second hides the
# first without breaking it.
WITH_CUDA = (
    "run `python -m pip install --no-deps --target DIR onnxruntime-gpu`, "
    f"{install_command('cuda')} and set PYTHONPATH=DIR"
)


class OnnxRuntimeBackend(Closable):
    """A bundle's ONNX file in an inference session.

    Args:
        network_path: A verified ONNX file.
        threads: Within one operator on the CPU; None lets ONNX Runtime use all cores.
        provider: One of `NAMES`; all of the network runs there, or it is an error.
        precision: Of the file.
        output: What it gives, as of `Bundle`.
        contents: Of the ONNX file and of what it reads, by name, to be used instead of opening them
            again. ONNX Runtime before 1.24 takes no weights that way and opens the files.

    Raises:
        BackendError: ONNX Runtime refuses the file, or would run some of it elsewhere.
    """

    def __init__(
        self,
        network_path: Path,
        threads: int | None = None,
        provider: str = CPU,
        precision: Precision = "fp32",
        output: str = "displacement",
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        self.name = NAMES[provider]
        self.precision = precision
        self._output = output
        self._path = network_path
        options = _options(threads)
        try:
            if provider == CPU:
                providers: list[Any] = [CPU]
            else:
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
                providers = _gpu_providers(provider, options)
            with _without_tf32():
                # Without its own fallback, which prints and goes on elsewhere.
                self._session = ort.InferenceSession(
                    _model(network_path, contents or {}, options),
                    options,
                    providers=providers or None,
                    enable_fallback=0,
                )
        except Exception as err:  # ONNX Runtime derives its errors from Exception directly
            raise BackendError(
                f"{network_path.name}: expected a network that ONNX Runtime {ort.__version__} "
                f"loads{_on(provider)}, got {_reason(err)}; {_advice(provider)}."
            ) from err
        if (used := self._session.get_providers()[0]) != provider:
            raise BackendError(
                f"{self.name}: expected the whole network in {provider}, got {used}; "
                f"{_advice(provider)}."
            )

    def run(
        self, moving: Float[np.ndarray, "i j k"], fixed: Float[np.ndarray, "i j k"]
    ) -> Float[np.ndarray, "3 i j k"]:
        """See `Network.run`."""
        self._check_open()
        options = ort.RunOptions()
        # Else the graph's own warp would be computed too and thrown away.
        options.only_execute_path_to_fetches = True
        if self.name == NAMES[CPU]:
            # Else the largest activations would stay allocated for another run.
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        feeds = {"moving": moving[np.newaxis, np.newaxis], "fixed": fixed[np.newaxis, np.newaxis]}
        try:
            (values,) = self._session.run([self._output], feeds, options)
        except Exception as err:
            raise BackendError(
                f"{self._path.name}: expected {self._output} for shape {moving.shape}, got "
                f"{_reason(err)}; check that the bundle was exported for this shape."
            ) from err
        return check_output(values, self._output, fixed.shape, self._path)

    def _release(self) -> None:
        del self._session


def _options(threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors; its warnings are about its own optimisations
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _model(path: Path, contents: Mapping[str, bytes], options: Any) -> Path | bytes:
    """What a session is made from: the content of its file, if what that reads can be given too."""
    weights = {name: content for name, content in contents.items() if name != path.name}
    if path.name not in contents or (weights and not hasattr(options, IN_MEMORY)):
        return path
    if weights:
        sizes = [len(content) for content in weights.values()]
        getattr(options, IN_MEMORY)(list(weights), list(weights.values()), sizes)
    return contents[path.name]


def check_provider(provider: str) -> None:
    """Whether this ONNX Runtime has a provider; a plugin's is registered on the way.

    Raises:
        MissingDependencyError: It has not; the message says how to get it.
    """
    if provider in ort.get_available_providers():
        return
    if provider == TENSORRT_RTX:
        _register_tensorrt_rtx()
    if not _plugin_devices(provider):
        raise MissingDependencyError(
            f"{NAMES[provider]}: expected an ONNX Runtime with {provider}, got {ort.__version__} "
            f"with {', '.join(ort.get_available_providers())}; {WITH_CUDA}."
        )


def _register_tensorrt_rtx() -> None:
    """NVIDIA's plugin for any ONNX Runtime, which takes the place of nothing."""
    plugin = import_optional(
        "onnxruntime_ep_nv_tensorrt_rtx", "tensorrt-rtx-onnxruntime", NAMES[TENSORRT_RTX]
    )
    try:
        if not _plugin_devices(TENSORRT_RTX):
            ort.register_execution_provider_library(TENSORRT_RTX, plugin.get_library_path())
    except Exception as err:
        raise MissingDependencyError(
            f"{NAMES[TENSORRT_RTX]}: expected NVIDIA's plugin for ONNX Runtime, got "
            f"{_reason(err)}; run {install_command('tensorrt-rtx-onnxruntime')}."
        ) from err


def _plugin_devices(provider: str) -> list[Any]:
    if not hasattr(ort, "get_ep_devices"):  # before ONNX Runtime 1.23
        return []
    return [device for device in ort.get_ep_devices() if device.ep_name == provider]


def _gpu_providers(provider: str, options: Any) -> list[Any]:
    """What to ask for; a plugin's provider goes into the options instead."""
    settings = {CUDA: {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}}
    if provider != CUDA:
        kernels = str(kernel_folder())
        settings |= {
            # Its binding takes no other words for yes and no.
            TENSORRT: {"trt_engine_cache_enable": "True", "trt_engine_cache_path": kernels},
            TENSORRT_RTX: {"nv_runtime_cache_path": kernels},
        }
    _preload_cuda()
    if provider not in ort.get_available_providers():
        options.add_provider_for_devices(_plugin_devices(provider)[:1], settings[provider])
        return []
    # TensorRT before 11.2 leaves volumes that are sampled to CUDA.
    names = [provider, CUDA] if provider == TENSORRT else [provider]
    return [(name, settings[name]) for name in names]


def _preload_cuda() -> None:
    """CUDA's libraries from NVIDIA's wheels, wherever those are.

    ONNX Runtime itself looks for them beside its own package alone, which `WITH_CUDA` puts into a
    folder of its own; the library of its provider names no folder.
    """
    if not hasattr(ort, "preload_dlls"):  # before ONNX Runtime 1.21
        return
    wheels = find_spec("nvidia")
    roots = wheels.submodule_search_locations if wheels else None
    folders = [folder for root in roots or () for folder in sorted(Path(root).glob("*/lib"))]
    with redirect_stdout(io.StringIO()):  # each folder holds some, and lacks the others
        for folder in folders:
            ort.preload_dlls(directory=str(folder))
    with redirect_stdout(sys.stderr):
        ort.preload_dlls()


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Let NVIDIA's libraries build for float32 as it is, not with the 10 bits of TF32.

    The TensorRT providers have no option for it; an engine is built when its session is made.

    Source:
        NVIDIA TensorRT Developer Guide, NVIDIA_TF32_OVERRIDE.
    """
    before = os.environ.get(TF32_OVERRIDE)
    os.environ[TF32_OVERRIDE] = "0"
    try:
        yield
    finally:
        del os.environ[TF32_OVERRIDE]
        if before is not None:
            os.environ[TF32_OVERRIDE] = before


def _on(provider: str) -> str:
    return "" if provider == CPU else f" in {provider} alone"


def _advice(provider: str) -> str:
    if provider == CPU:
        return "update onnxruntime or export the bundle again"
    return "install what ONNX Runtime misses in its lines above, or choose another --backend"


def _reason(err: Exception) -> str:
    """ONNX Runtime's message, without its codes, source files and functions."""
    line = (str(err).splitlines() or [type(err).__name__])[0]
    return re.sub(r"^(\[ONNXRuntimeError\] : \d+ : \w+ : )?(\S+\.cc:\d+ .*?\) )?", "", line).rstrip(
        "."
    )

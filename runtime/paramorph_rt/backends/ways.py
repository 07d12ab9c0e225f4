"""The ways to run a network, each an engine library on a device, in the order of their speed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from ..bundle import PRECISIONS, Precision
from ..errors import ParamorphError, needs
from ..system.optional import import_optional
from .interface import Load, Network, Shape, prove

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..bundle.names import Flavour

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """One way to run a network: an engine library on a device.

    Attributes:
        backend: The one of `BACKENDS` that it serves; some have two ways.
        name: Of the `Backend` that it loads.
        precisions: That it supports.
        by_default: Those that "auto" tries, in this order.
        prepare: Checks all that can be checked without loading (bundle, precision, threads) and
            returns what loads the network of the bundle's grid; raises what is in the way.
        makes_bf16: Whether the library runs a network of float32 in bf16 when it is told so.
    """

    backend: str
    name: str
    precisions: tuple[Precision, ...]
    by_default: tuple[Precision, ...]
    prepare: Callable[[Bundle, Precision, int | None], Load]
    makes_bf16: bool = False

    @property
    def extra(self) -> str | None:
        """Of this package, which brings the library; None for the base install."""
        return None if self.backend == "onnxruntime" else self.backend

    def loads(self, bundle: Bundle, precision: Precision, threads: int | None) -> dict[Shape, Load]:
        """What loads the network of each shape that can be run this way.

        Raises:
            ParamorphError: What is in the way of the first, if none can be run.
        """
        loads: dict[Shape, Load] = {}
        reasons: list[ParamorphError] = []
        for shape in bundle.shapes:
            try:
                with needs(self.extra, self.backend):
                    load = self.prepare(bundle.at(shape), precision, threads)
                loads[shape] = partial(self._load, load)
            except ParamorphError as err:
                reasons.append(err)
        if not loads:
            raise reasons[0]
        return loads

    def _load(self, load: Load) -> Network:
        with needs(self.extra, self.backend):
            return load()


def _engine(flavour: Flavour) -> Callable[[Bundle, Precision, int | None], Load]:
    def prepare(bundle: Bundle, precision: Precision, threads: int | None) -> Load:
        from .engine_files import engine_of_version, engines_for
        from .gpu import find_gpu
        from .tensorrt import EngineBackend, import_library

        engines = engines_for(bundle, flavour, precision, find_gpu().compute_capability)
        library = import_library(flavour)
        entry = engine_of_version(engines, library.__version__, bundle)
        return lambda: EngineBackend(bundle, entry, library)

    return prepare


def _onnxruntime_on_gpu(provider: str) -> Callable[[Bundle, Precision, int | None], Load]:
    def prepare(bundle: Bundle, precision: Precision, threads: int | None) -> Load:
        from .gpu import find_gpu

        find_gpu()
        from .onnxruntime import OnnxRuntimeBackend, check_provider

        entry = bundle.network(precision, device="gpu")
        check_provider(provider)

        def load() -> Network:
            if entry.device != "gpu" and provider != "CUDAExecutionProvider":
                log.warning(
                    "%s: rewritten for CPUs, it may take ten times the memory in %s; export the "
                    "bundle with --fp32-for-gpus.",
                    entry.file,
                    provider,
                )
            path = bundle.verified_network(entry)
            backend = OnnxRuntimeBackend(path, threads, provider, precision, bundle.output)
            return prove(backend, entry.shape)

        return load

    return prepare


def _openvino(bundle: Bundle, precision: Precision, threads: int | None) -> Load:
    module = import_optional(f"{__package__}.openvino", "openvino", "openvino")
    module.check_precision(precision)
    entry = bundle.network()  # float32, which OpenVINO rounds by itself
    sha256 = bundle.network_sha256(entry)

    def load() -> Network:
        path = bundle.verified_network(entry)
        return module.OpenVinoBackend(path, threads, precision, sha256, bundle.output)

    return load


def _onnxruntime(bundle: Bundle, precision: Precision, threads: int | None) -> Load:
    module = import_optional(f"{__package__}.onnxruntime", None, "onnxruntime")
    entry = bundle.network(precision)

    def load() -> Network:
        path, contents = bundle.folder / entry.file, bundle.verified_contents(entry)
        return module.OnnxRuntimeBackend(path, threads, output=bundle.output, contents=contents)

    return load


_CUDA, _TENSORRT, _TENSORRT_RTX = (
    _onnxruntime_on_gpu(f"{provider}ExecutionProvider")
    for provider in ("CUDA", "Tensorrt", "NvTensorRTRTX")
)
_ON_GPU: tuple[Precision, ...] = ("fp16", "fp32")
# Fastest first. Engines that are built already come before those that ONNX Runtime's providers
# build from the network at every start, and these after CUDA, which starts at once.
WAYS = (
    Way("tensorrt", "tensorrt", PRECISIONS, _ON_GPU, _engine("tensorrt")),
    Way("tensorrt-rtx", "tensorrt-rtx", PRECISIONS, _ON_GPU, _engine("tensorrt-rtx")),
    # Without bf16: ONNX Runtime has no such kernels for LeakyRelu, Resize, InstanceNormalization.
    Way("cuda", "onnxruntime-cuda", _ON_GPU, _ON_GPU, _CUDA),
    Way("tensorrt-rtx", "onnxruntime-tensorrt-rtx", PRECISIONS, _ON_GPU, _TENSORRT_RTX),
    # Weakly typed: in fp16 it would round sampling coordinates as well.
    Way("tensorrt", "onnxruntime-tensorrt", ("fp32",), ("fp32",), _TENSORRT),
    Way("openvino", "openvino-cpu", ("fp32", "bf16"), ("fp32",), _openvino, makes_bf16=True),
    Way("onnxruntime", "onnxruntime-cpu", ("fp32",), ("fp32",), _onnxruntime),
)

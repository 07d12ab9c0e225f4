"""OpenVINO on the CPU: the network in float32 or, most of it, in bfloat16; warps in float32."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BackendError
from .interface import Closable, check_output
from .openvino_cache import CompiledFile, PartHeader
from .openvino_graph import Part, parts_from_onnx
from .openvino_package import ov

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float, UInt8

    from ..bundle import Precision

log = logging.getLogger(__name__)

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class OpenVinoBackend(Closable):
    """A bundle's ONNX file, compiled for this CPU.

    Args:
        network_path: A verified ONNX file.
        threads: None lets OpenVINO choose.
        precision: Of the network; the displacement is float32 either way.
        sha256: Of the file, by which the compiled network is cached on disk; None compiles it every
            time.
        output: What the network gives, as of `Bundle`.

    Raises:
        BackendError: OpenVINO refuses the network, or this CPU lacks the precision.
    """

    name = "openvino-cpu"

    def __init__(
        self,
        network_path: Path,
        threads: int | None = None,
        precision: Precision = "fp32",
        sha256: str | None = None,
        output: str = "displacement",
    ) -> None:
        self.precision = precision
        self._wanted = output
        self._path = network_path
        self._core = ov.Core()
        check_precision(precision, self._core)
        # Pinned threads would crowd on the same cores as those of another process.
        self._options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        if threads is not None:
            self._options["INFERENCE_NUM_THREADS"] = threads
        cache = CompiledFile(network_path, sha256, precision, self._core) if sha256 else None
        self._steps, self._output = (cache and self._from_cache(cache)) or self._compiled(cache)

    def _from_cache(self, cache: CompiledFile) -> tuple[list[_Step], str] | None:
        cached = cache.read()
        if cached is None:
            return None
        parts, output = cached

        def load(header: PartHeader, content: UInt8[np.ndarray, " n"]) -> _Step:
            options = self._options_of(header)
            compiled = self._core.import_model(ov.Tensor(content), "CPU", options)
            return _Step(header, compiled, content)

        try:
            with ThreadPoolExecutor() as pool:
                return list(pool.map(load, *zip(*parts, strict=True))), output
        except RuntimeError as err:
            log.warning(
                "openvino cache: %s is refused (%s); compiled again", cache.path, _reason(err)
            )
            return None

    def _compiled(self, cache: CompiledFile | None) -> tuple[list[_Step], str]:
        def load(part: Part) -> _Step:
            header = PartHeader(part.inputs, part.outputs, part.in_float)
            options = self._options_of(header)
            return _Step(header, self._core.compile_model(part.model, "CPU", options))

        try:
            # Features need no float32: no warp depends on them, and none is in their network.
            mixed = self.precision != "fp32" and self._wanted == "displacement"
            parts, output = parts_from_onnx(self._path, self._wanted, mixed)
            with ThreadPoolExecutor() as pool:
                steps = list(pool.map(load, parts))
        except Exception as err:  # OpenVINO's frontends derive their errors from Exception directly
            version = ov.__version__.split("-")[0]
            raise BackendError(
                f"{self._path.name}: expected a network that OpenVINO {version} compiles, got "
                f"{_reason(err)}; choose --backend onnxruntime."
            ) from err
        if cache:
            cache.write(((step.header, step.exported()) for step in steps), output)
        return steps, output

    def _options_of(self, header: PartHeader) -> dict[str, Any]:
        hint = _HINTS["fp32" if header.in_float else self.precision]
        return {**self._options, "INFERENCE_PRECISION_HINT": hint}

    def run(
        self, moving: Float[np.ndarray, "i j k"], fixed: Float[np.ndarray, "i j k"]
    ) -> Float[np.ndarray, "3 i j k"]:
        """See `Network.run`."""
        self._check_open()
        values = {"moving": moving[np.newaxis, np.newaxis], "fixed": fixed[np.newaxis, np.newaxis]}
        try:
            steps = list(self._steps)
            for number, step in enumerate(steps):
                values |= step(values)
                # What is not read again gives its memory back.
                wanted = {self._output}.union(*(s.header.inputs for s in steps[number + 1 :]))
                values = {name: value for name, value in values.items() if name in wanted}
        except Exception as err:
            raise BackendError(
                f"{self._path.name}: expected {self._wanted} for shape {moving.shape}, got "
                f"{_reason(err)}; check that the bundle was exported for this shape."
            ) from err
        return check_output(values[self._output], self._wanted, fixed.shape, self._path)

    def _release(self) -> None:
        self._steps.clear()


def check_precision(precision: Precision, core: ov.Core | None = None) -> None:
    """Whether this CPU computes in it.

    Raises:
        BackendError: It does not.
    """
    core = core or ov.Core()
    if precision == "bf16" and not has_bf16(core):
        raise BackendError(
            "openvino: expected a CPU that computes in bf16, got "
            f"{core.get_property('CPU', 'FULL_DEVICE_NAME')}; choose --precision fp32."
        )


def has_bf16(core: ov.Core | None = None) -> bool:
    """Whether this CPU has instructions for bfloat16."""
    return "BF16" in (core or ov.Core()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class _Step:
    """A part, compiled: reads some of the values by name and gives others.

    Args:
        header: Names of the values.
        compiled: Its inputs and outputs are in the order of the names.
        content: Memory that `compiled` may go on reading.
    """

    def __init__(
        self,
        header: PartHeader,
        compiled: ov.CompiledModel,
        content: UInt8[np.ndarray, " n"] | None = None,
    ) -> None:
        self.header = header
        self._compiled, self._content = compiled, content

    def exported(self) -> memoryview:
        """What `Core.import_model` makes the compiled part of."""
        return self._compiled.export_model().getbuffer()

    def __call__(self, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # A new request each time, so that several threads may run the network.
        request = self._compiled.create_infer_request()
        feeds = {number: values[name] for number, name in enumerate(self.header.inputs)}
        results = request.infer(feeds, share_inputs=True, share_outputs=True)
        return {name: results[number] for number, name in enumerate(self.header.outputs)}


def _reason(err: Exception) -> str:
    """The last line of what OpenVINO says; those before name its own source files."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines or [type(err).__name__])[-1].strip(".- ")

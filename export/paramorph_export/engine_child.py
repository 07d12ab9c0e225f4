"""The process that builds one engine: TensorRT may crash here, and nothing else with it.

Everything that the library says goes to stdout, which is the build's log.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

INPUTS, OUTPUTS = ("moving", "fixed"), ("displacement", "warped")
NATIVE_GRID_SAMPLE = (11, 2)  # first TensorRT whose GridSample has a 5-D form
PLUGIN = ("GridSample3D", "1", "")  # type, version, namespace
PORTABLE = "portable"  # a target of TensorRT for RTX: all its cards
PR_SET_PDEATHSIG = 1  # of Linux's prctl
MEMORY = {
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+) bytes"),
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+) bytes"),
}


def main() -> int:
    """Build what argv's JSON (`engine.Job`) says; 1 if the library refuses."""
    job = json.loads(sys.argv[1])
    _end_with_parent(job["parent"])
    library = import_module(job["module"])
    said: dict[str, int] = {}
    engine = build(library, _logger(library, said), job)
    if engine is None:
        return 1
    Path(job["engine"]).write_bytes(engine)
    answer = {"version": library.__version__, "needs_plugin": _needs_plugin(library)}
    answer |= {key: said.get(key) for key in MEMORY}
    Path(job["answer"]).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def build(library: Any, logger: Any, job: dict[str, Any]) -> Any:
    """The serialised engine, or None; the log says why."""
    builder = library.Builder(logger)
    config = builder.create_builder_config()
    content = Path(job["network"]).read_bytes()
    if _needs_plugin(library):
        if job["plugin"] is None:
            return _refuse(
                f"TensorRT {library.__version__} has no GridSample of volumes: pass --plugin "
                "LIBRARY, which export/build_plugin.py builds"
            )
        registry = library.get_plugin_registry()
        if registry.load_library(job["plugin"]) is None or registry.get_creator(*PLUGIN) is None:
            return _refuse(
                f"{job['plugin']} is no library of {PLUGIN[0]} for {library.__version__}"
            )
        content = _without_definitions(content)
    # Before version 11, networks are typed by the builder unless a flag says otherwise.
    strongly = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = (str(parser.get_error(i)) for i in range(parser.num_errors))
        return _refuse("; ".join(errors).replace("\n", " ") or "the network was not parsed")
    if not _is_float32(library, network):
        return _refuse("inputs and outputs are not the float32 volumes of a bundle's network")
    if misread := _misread_sampling(library, network):
        return _refuse(misread)
    # On by default: products of float32 with 10 bits, as many as float16 has.
    config.clear_flag(library.BuilderFlag.TF32)
    # One stream. With more, branches may overlap, but those of two passes at 96×128×96 wait 204
    # times for one another and take 331 instead of 208 MB of activations.
    config.max_aux_streams = 0
    if _is_rtx(library) and job["target"] != PORTABLE:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(library.ComputeCapability, job["target"].upper()), 0)
    return builder.build_serialized_network(network, config)


def _is_rtx(library: Any) -> bool:
    return library.__name__ == "tensorrt_rtx"


def _needs_plugin(library: Any) -> bool:
    major, minor, *_ = library.__version__.split(".")
    return not _is_rtx(library) and (int(major), int(minor)) < NATIVE_GRID_SAMPLE


def _without_definitions(content: bytes) -> bytes:
    """The network without the definition of GridSample3D, which would hide the plugin."""
    import onnx

    model = onnx.load_from_string(content)
    del model.functions[:]
    return model.SerializeToString()


def _is_float32(library: Any, network: Any) -> bool:
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    names = tuple(t.name for t in inputs), tuple(t.name for t in outputs)
    return names == (INPUTS, OUTPUTS) and all(t.dtype == library.float32 for t in inputs + outputs)


def _misread_sampling(library: Any, network: Any) -> str | None:
    """What a parser made of GridSample, if that is not what the network computes.

    TensorRT 10.13 to 11.1 read the `linear` of opset 20 as nearest, without a word.

    Source:
        https://github.com/NVIDIA/TensorRT/issues/4646
    """
    expected = (library.InterpolationMode.LINEAR, library.SampleMode.CLAMP, True)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != library.LayerType.GRID_SAMPLE:
            continue
        layer.__class__ = library.IGridSampleLayer  # its getters are not those of ILayer
        sampling = (layer.interpolation_mode, layer.sample_mode, layer.align_corners)
        if sampling != expected:
            return (
                f"{layer.name} samples with {sampling[0]}, {sampling[1]} and align_corners "
                f"{sampling[2]}, and the network by linear interpolation between corners, clamped: "
                "this parser misreads GridSample; install another version of TensorRT"
            )
    return None


def _end_with_parent(parent: int) -> None:
    """Builds take minutes, and nobody would want this one any more."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def _refuse(reason: str) -> None:
    print(f"ERROR {reason}", flush=True)


def _logger(library: Any, said: dict[str, int]) -> Any:
    """Prints every message, and records the memory that they report."""

    class Logger(library.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            for key, pattern in MEMORY.items():
                if match := pattern.search(message):
                    said[key] = int(match[1])
            if severity != library.ILogger.Severity.VERBOSE:
                print(severity.name, message, flush=True)

    return Logger()


if __name__ == "__main__":
    sys.exit(main())

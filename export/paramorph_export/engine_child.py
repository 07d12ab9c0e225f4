"""The process that builds one engine: TensorRT may crash here, and nothing else with it.

Everything that the library says goes to stdout, which is the build's log.
"""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

INPUTS, OUTPUTS = ("moving", "fixed"), ("displacement", "warped")
NATIVE_GRID_SAMPLE = (11, 2)  # first TensorRT whose GridSample has a 5-D form
MEMORY = {
    "activation_bytes": re.compile(r"Total Activation Memory: (\d+) bytes"),
    "weights_bytes": re.compile(r"Total Weights Memory: (\d+) bytes"),
}


def main() -> int:
    """Build what argv's JSON (`engine.Job`) says; 1 if the library refuses."""
    job = json.loads(sys.argv[1])
    library = import_module(job["module"])
    said: dict[str, int] = {}
    engine = build(library, _logger(library, said), job)
    if engine is None:
        return 1
    Path(job["engine"]).write_bytes(engine)
    answer = {"version": library.__version__, "has_plugin": _needs_plugin(library)}
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
        library.get_plugin_registry().load_library(job["plugin"])
        config.plugins_to_serialize = [job["plugin"]]
        content = _without_definitions(content)
    # Before version 11, networks are typed by the builder unless it is told not to.
    strongly = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(content):
        errors = (str(parser.get_error(i)) for i in range(parser.num_errors))
        return _refuse("; ".join(errors).replace("\n", " ") or "the network was not parsed")
    if not _is_float32(library, network):
        return _refuse("inputs and outputs are not the float32 volumes of a bundle's network")
    if _is_rtx(library):
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


def _refuse(reason: str) -> None:
    print(f"ERROR {reason}", flush=True)


def _logger(library: Any, said: dict[str, int]) -> Any:
    """Prints every message, and keeps the memory that they tell."""

    class Logger(library.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            for key, pattern in MEMORY.items():
                if found := pattern.search(message):
                    said[key] = int(found[1])
            if severity != library.ILogger.Severity.VERBOSE:
                print(severity.name, message, flush=True)

    return Logger()


if __name__ == "__main__":
    sys.exit(main())

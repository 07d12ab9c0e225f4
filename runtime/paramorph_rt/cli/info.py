"""`paramorph-rt info`: what can run here, and why the rest cannot."""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from .sign import add_option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ..backends import Load, Precision, Shape, Way
    from ..bundle import Bundle, EngineEntry

PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu12",
    "pycuda",
    "cuda-bindings",
)

_EPILOG = """
examples:
  paramorph-rt info
  paramorph-rt info --model hippocampus-small --load
  paramorph-rt info --json
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "info",
        help="list engines and devices, and why one cannot be used",
        description="List inference engines with their versions, the GPU, what a bundle holds, and "
        "for every way to run it whether it can be used here, or why not.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "--model",
        metavar="MODEL",
        help="name of a shipped model, or folder of a bundle (default: the first shipped one)",
    )
    add(
        "--load",
        action="store_true",
        help="also load the model in every way that looks usable, which proves it",
    )
    add("--json", action="store_true", help="print JSON instead of a table")
    add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, print."""
    from ..bundle import bundle_path, load_bundle
    from ..errors import BundleError
    from ..results.provenance import platform_of

    facts: dict[str, Any] = {
        "version": _version(),
        "platform": platform_of() | {"cores": os.cpu_count()},
        "packages": engine_versions(),
        "gpu": _gpu(),
    }
    try:
        bundle = load_bundle(bundle_path(args.model))
    except BundleError as err:
        if args.model is not None:
            raise
        facts["model"] = str(err)  # there is enough to say without one
    else:
        facts["model"] = _model(bundle)
        facts["backends"] = _backends(bundle.main, args.load)
    print(json.dumps(facts) if args.json else _table(facts))
    return 0


def engine_versions() -> dict[str, str]:
    """What is installed of engines and of what drives them."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _version() -> str:
    from .. import __version__

    return str(__version__)


def _gpu() -> dict[str, Any] | str:
    from dataclasses import asdict

    from ..backends import gpu

    return _or_reason(lambda: asdict(gpu.find_gpu()))


def _model(bundle: Bundle) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "name": bundle.name,
        "folder": str(bundle.folder),
        "networks": [asdict(network) for network in bundle.networks],
        "feature_networks": [asdict(network) for network in bundle.feature_networks],
        "engines": [
            {**asdict(engine), "why_not": _why_not(bundle, engine)} for engine in bundle.engines
        ],
    }


def _why_not(bundle: Bundle, engine: EngineEntry) -> str | None:
    """What is in the way of one engine, as if the bundle held no other."""
    from dataclasses import replace

    from ..backends import WAYS

    alone = replace(bundle, engines=(engine,)).at(engine.shape)
    way = next(way for way in WAYS if way.name == engine.flavour)
    precision = cast("Precision", engine.precision)
    answer = _or_reason(partial(way.prepare, alone, precision, None))
    return answer if isinstance(answer, str) else None


def _backends(bundle: Bundle, load: bool) -> list[dict[str, Any]]:
    from ..backends import WAYS

    return [_describe(way, bundle, load) for way in WAYS]


def _describe(way: Way, bundle: Bundle, load: bool) -> dict[str, Any]:
    """Precisions that can be used, and shapes; without one, what is in the way of the first."""
    answers = {p: _or_reason(partial(way.loads, bundle, p, None)) for p in way.precisions}
    shapes = {p: list(loads) for p, loads in answers.items() if not isinstance(loads, str)}
    if load:
        for precision in shapes:
            answers[precision] = _or_reason(partial(_seconds, answers[precision]))
    usable = [p for p, answer in answers.items() if not isinstance(answer, str)]
    described: dict[str, Any] = {"backend": way.backend, "name": way.name, "precisions": usable}
    described["shapes"] = {p: shapes[p] for p in usable}
    if load:
        described["load_seconds"] = {p: answers[p] for p in usable}
    if not usable:
        held = {network.precision for network in bundle.networks}
        tried = [p for p in way.by_default if p in held] or [way.by_default[-1]]
        described["why_not"] = answers[tried[0]]
    return described


def _seconds(loads: Mapping[Shape, Load]) -> float:
    started = time.perf_counter()
    for load in loads.values():
        load()
    return round(time.perf_counter() - started, 2)


def _or_reason(attempt: Callable[[], Any]) -> Any:
    """What it gives, or the sentence of an error of ours."""
    from ..errors import ParamorphError

    try:
        return attempt()
    except ParamorphError as err:
        return str(err)


def _table(facts: dict[str, Any]) -> str:
    rows = [("paramorph-rt", facts["version"]), ("platform", _platform_line(facts["platform"]))]
    rows += [("", f"{package} {version}") for package, version in facts["packages"].items()]
    gpu = facts["gpu"]
    rows.append(("GPU", gpu.removeprefix("GPU: ") if isinstance(gpu, str) else _gpu_line(gpu)))
    model = facts["model"]
    if isinstance(model, str):
        return _aligned([*rows, ("model", model)])

    def reason(what: dict[str, Any]) -> str:
        return "see GPU" if what["why_not"] == gpu else what["why_not"]

    rows.append(("model", f"{model['name']} in {model['folder']}"))
    rows += [
        ("network", f"{_entry_line(network)}, for the {network['device'].upper()}")
        for network in model["networks"]
    ]
    rows += [("features", _entry_line(network)) for network in model["feature_networks"]]
    for engine in model["engines"]:
        built = f"{engine['flavour']} {engine['version']} for {engine['compute_capability']}"
        rows.append(("engine", f"{_entry_line(engine)}, {built}"))
        rows.append(("", f"no: {reason(engine)}" if engine["why_not"] else "can be used"))
    for way in facts["backends"]:
        line = _way_line(way) if way["precisions"] else f"no: {reason(way)}"
        rows.append((way["name"], line))
    return _aligned(rows)


def _platform_line(facts: dict[str, Any]) -> str:
    where = f"{facts['system']} {facts['machine']}, Python {facts['python']}"
    return f"{where}, {facts['cores']} CPU cores"


def _gpu_line(gpu: dict[str, Any]) -> str:
    return (
        f"{gpu['name']}, compute capability {gpu['compute_capability']}, "
        f"{gpu['memory_bytes'] / 1e9:.1f} GB, driver for CUDA {gpu['driver_cuda']}"
    )


def _entry_line(entry: dict[str, Any]) -> str:
    return f"{entry['file']}: {entry['precision']} at {_shape(entry['shape'])}"


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _way_line(way: dict[str, Any]) -> str:
    seconds = way.get("load_seconds", {})
    notes = [
        f"{p} at {' or '.join(map(_shape, way['shapes'][p]))}"
        + (f" (loaded in {seconds[p]} s)" if seconds else "")
        for p in way["precisions"]
    ]
    return f"--backend {way['backend']}: {', '.join(notes)}"


def _aligned(rows: list[tuple[str, str]]) -> str:
    width = max(len(title) for title, _ in rows) + 2
    return "\n".join(f"{title:<{width}}{text}" for title, text in rows)

"""What engines cost before they run: build, size, memory, launches, traffic; needs no GPU."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from bundles import add_model_option, named_bundles, traced, weights_of
from paramorph_export.engine import add_engines
from paramorph_export.errors import ExportError
from paramorph_export.graph import REWRITES
from paramorph_export.precision import stays_float, with_precision
from paramorph_rt.bundle import MANIFEST, load_bundle
from paramorph_rt.errors import exit_code
from record import write_result
from report import markdown_table
from schedule import CARDS, EFFICIENCY, LAUNCH_SECONDS, schedule_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxscript import ir

    from paramorph_export.graph import Rewrite
    from paramorph_rt.bundle import Bundle

    Rule = Callable[[ir.Node, ir.DataType], bool]

COLUMNS = (
    ("network", "label", ""),
    ("graph", "graph", ""),
    ("passes", "passes", "d"),
    ("grid", "grid", ""),
    ("precision", "precision", ""),
    ("target", "compute_capability", ""),
    ("build, s", "build_seconds", ".0f"),
    ("ONNX file, MB", "network_mb", ".1f"),
    ("engine, MB", "engine_mb", ".2f"),
    ("of these weights", "weights_mb", ".1f"),
    ("activations, MB", "activations_mb", ".0f"),
    ("launches", "launches", "d"),
    ("traffic, GB", "gigabytes", ".2f"),
    *((f"model of {card.name}, ms", card.name, ".1f") for card in CARDS),
)


@dataclass(frozen=True)
class Variant:
    """A half graph other than the exported one: what each choice of the export is worth."""

    name: str
    rule: Rule = stays_float
    rewrites: Sequence[type[Rewrite]] = REWRITES


def _but(operator: str) -> Rule:
    return lambda node, half: stays_float(node, half) and node.op_type != operator


def _also(operator: str) -> Rule:
    return lambda node, half: stays_float(node, half) or node.op_type == operator


VARIANTS = (
    *(
        Variant(f"without {left_out.__name__}", rewrites=[r for r in REWRITES if r is not left_out])
        for left_out in REWRITES
    ),
    Variant("convolutions of one channel in half", _but("Conv")),
    Variant("sums of one or two channels in half", _but("Add")),
    Variant("all instance norms in float32", _also("InstanceNormalization")),
)


def measure(
    label: str,
    bundle: Bundle,
    weights: Path,
    targets: Sequence[str],
    precisions: Sequence[str],
    flavour: str,
) -> list[dict[str, Any]]:
    """Build in a copy of the bundle; a row per engine, and one per variant for the first target.

    Raises:
        ExportError: The build of an exported network failed.
    """
    rows = []
    graph = traced(bundle, weights)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bundle"
        shutil.copytree(bundle.folder, folder)
        for precision in precisions:
            for entry in add_engines(folder, targets, flavour, precision):
                rows.append(_row(label, "as exported", folder, entry))
            for variant in VARIANTS if precision != "fp32" else ():
                _replace_network(folder, graph, precision, variant)
                try:
                    (entry,) = add_engines(folder, targets[:1], flavour, precision)
                    rows.append(_row(label, variant.name, folder, entry))
                except ExportError as err:
                    print(err, file=sys.stderr)
                    rows.append(
                        {
                            "label": f"{label}: no engine",
                            "graph": variant.name,
                            "precision": precision,
                            "error": str(err).partition("; read ")[0],  # the log is temporary
                        }
                    )
    return rows


def _row(label: str, graph: str, folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    manifest = load_bundle(folder).manifest
    kept = ("flavour", "version", "compute_capability", "precision", "build_seconds")
    return {
        "label": label,
        "graph": graph,
        "passes": manifest["network"].get("passes", 1),
        "grid": "×".join(map(str, entry["shape"])),
        "network_mb": manifest["files"][entry["network"]]["bytes"] / 1e6,
        "engine_mb": manifest["files"][entry["file"]]["bytes"] / 1e6,
        "weights_mb": entry["weights_bytes"] / 1e6,
        "activations_mb": entry["device_memory_bytes"] / 1e6,
        **{key: entry[key] for key in kept},
        **_scheduled(folder / entry["file"]),
    }


def _scheduled(engine: Path) -> dict[str, Any]:
    """What the engine's own text says, where it says anything: that of TensorRT for RTX does."""
    try:
        summary = schedule_of(engine.read_bytes()).summary()
    except ValueError as err:
        return {"schedule": str(err)}
    return {**summary, **summary["modelled_ms"]}


def _replace_network(
    folder: Path, graph: onnx.ModelProto, precision: str, variant: Variant
) -> None:
    """The half graph of a bundle by another one, made from its graph as traced."""
    bundle = load_bundle(folder)
    half = with_precision(graph, precision, variant.rule, variant.rewrites).SerializeToString()
    file = bundle.network(precision).file
    (folder / file).write_bytes(half)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][file] = {"sha256": hashlib.sha256(half).hexdigest(), "bytes": len(half)}
    (folder / MANIFEST).write_text(json.dumps(manifest))


def table(result: dict[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    first = result["rows"][0]
    return (
        f"# {name}\n\n"
        f"Written by `benchmarks/engines.py` from `{name}.json`: {first['flavour']} "
        f"{first['version']} on two cores of {result['processor']} without a GPU, commit "
        f"{result['commit']}.\n\n"
        "MB are 10⁶ bytes. Weights and activations are what the library reports; it reserves the "
        "activations on the device when a context is created. What an engine holds beyond its "
        "weights is the text of its kernels, about 145 kB each, which the library compiles on the "
        "card. Launches and traffic are those of the engine's own program: every tensor that a "
        "kernel reads or writes, once. From these, and from the arithmetic of its products, comes "
        "a model of the time on a card, which no card has confirmed: the longer of moving at "
        f"{' or '.join(f'{c.bytes_per_second / 1e9:.0f}' for c in CARDS)} GB/s and computing at "
        f"{EFFICIENCY:.0%} of {' or '.join(f'{c.flop_per_second / 1e12:g}' for c in CARDS)} "
        f"TFLOP/s, and {LAUNCH_SECONDS * 1e6:g} µs for each launch. The other graphs compute the "
        "same without one choice of the export each (classes of `paramorph_export.graph`, rules of "
        "`paramorph_export.precision`).\n\n" + markdown_table(result["rows"], COLUMNS)
    )


def run(args: argparse.Namespace) -> None:
    """Measure; write the JSON and the table."""
    rows = [
        row
        for label, bundle in named_bundles(args.model).items()
        for row in measure(
            *(label, bundle, weights_of(bundle, args.weights)),
            *(args.target, args.precision, args.flavour),
        )
    ]
    path = write_result(args.name, {"rows": rows}, packages=[f"{rows[0]['flavour']}-cu13"])
    page = table(json.loads(path.read_text(encoding="utf-8")), path.stem)
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    print(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_model_option(parser)
    add("--weights", type=Path, nargs="*", default=[], help="of bundles that are not shipped")
    add("--target", nargs="+", default=["rtx3080"], help="as of export/build_engine.py")
    add("--precision", nargs="+", default=["fp16"], help="of the bundle's networks")
    add("--flavour", default="tensorrt-rtx", help="(default: %(default)s)")
    add("--name", default="engines", help="of the result files (default: %(default)s)")
    args = parser.parse_args()
    return exit_code("engines.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

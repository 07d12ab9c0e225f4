"""What engines cost before they run: build, size, memory; needs no GPU."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmark import MODEL, Benchmark, option
from bundles import named_bundles
from paramorph_export.engine import add_engines
from paramorph_rt.bundle import Bundle, load_bundle
from record import Result, Row
from schedule import CARDS, EFFICIENCY, LAUNCH_SECONDS, schedule_of
from tables import markdown_table, measured

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
#: What launches are for, as of `schedule.Launch.group`.
GROUPS = (
    "convolution",
    "linear",
    "attention",
    "layer norm",
    "instance norm",
    "upsampling",
    "others",
)
FROM_MANIFEST = ("flavour", "version", "compute_capability", "precision", "build_seconds")


def rows_of(label: str, bundle: Bundle, args: argparse.Namespace) -> list[Row]:
    """Build in a copy of the bundle; a row per engine.

    Raises:
        ExportError: A build failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bundle"
        shutil.copytree(bundle.folder, folder)
        return [
            _row(label, folder, entry)
            for precision in args.precision
            for entry in add_engines(folder, args.target, args.flavour, precision)
        ]


def _row(label: str, folder: Path, entry: dict[str, Any]) -> Row:
    bundle = load_bundle(folder)
    return {
        "label": label,
        "passes": bundle.configuration.get("passes", 1),
        "grid": "×".join(map(str, entry["shape"])),
        "network_mb": bundle.size(entry["network"]) / 1e6,
        "engine_mb": bundle.size(entry["file"]) / 1e6,
        "weights_mb": entry["weights_bytes"] / 1e6,
        "activations_mb": entry["device_memory_bytes"] / 1e6,
        **{key: entry[key] for key in FROM_MANIFEST},
        **_scheduled(folder / entry["file"]),
    }


def _scheduled(engine: Path) -> Row:
    """What the engine's own text says, where it says anything: that of TensorRT for RTX does."""
    try:
        summary = schedule_of(engine.read_bytes()).summary()
    except ValueError as err:
        return {"schedule": str(err)}
    return {**summary, **summary["modelled_ms"]}


def run(args: argparse.Namespace) -> Row:
    """Build the engines of all bundles."""
    bundles = named_bundles(args.model)
    return {
        "rows": [row for label, bundle in bundles.items() for row in rows_of(label, bundle, args)]
    }


def body(result: Result) -> str:
    """The text of a result's page."""
    rows = result["rows"]
    return (
        f"{rows[0]['flavour']} {rows[0]['version']}, without a GPU. MB are 10⁶ bytes. Weights and "
        "activations are what the library reports; it reserves the activations on the device when "
        "a context is created. What an engine holds beyond its weights is the text of its kernels, "
        "about 145 kB each, which the library compiles on the card. Launches and traffic are those "
        "of the engine's own program: every tensor that a kernel reads or writes, once. From "
        "these, and from the arithmetic of its products, comes a model of the time on a card, "
        "which no card has confirmed: the longer of moving at "
        f"{' or '.join(f'{c.bytes_per_second / 1e9:.0f}' for c in CARDS)} GB/s and computing at "
        f"{EFFICIENCY:.0%} of {' or '.join(f'{c.flop_per_second / 1e12:g}' for c in CARDS)} "
        f"TFLOP/s, and {LAUNCH_SECONDS * 1e6:g} µs for each launch. Other graphs, where there are "
        "any, compute the same without one choice of the export each (classes of "
        "`paramorph_export.graph`, rules of `paramorph_export.precision`).\n\n"
        + markdown_table(rows, measured(COLUMNS, rows))
        + _by_group(rows)
    )


def _by_group(rows: list[Row]) -> str:
    """What the launches are for, of the engines that tell."""
    told = [{**row, **row["groups"]} for row in rows if "groups" in row]
    if not told:
        return ""
    columns = (*COLUMNS[:1], *COLUMNS[5:6], *((group, group, "d") for group in GROUPS))
    return (
        "\n\nLaunches by what they are for. A block of window attention takes seven: a norm, the "
        "product for queries, keys and values, attention, the projection, its sum with a norm, and "
        "two products. A pass of the network has 18 such blocks: 126 launches in one pass and 252 "
        "in two, without one more in each of the larger blocks which look at the other volume, "
        "that makes their queries. Most of the rest are convolutions, the norms between them and, "
        "among the others, launches that clear the counters of sums over whole volumes.\n\n"
        + markdown_table(told, columns)
    )


OPTIONS = (
    MODEL,
    option("--target", nargs="+", default=["rtx3080"], help="as of export/build_engine.py"),
    option("--precision", nargs="+", default=["fp16"], help="of the bundle's networks"),
    option("--flavour", default="tensorrt-rtx"),
)
BENCHMARK = Benchmark(run, body, OPTIONS, packages=["tensorrt-rtx-cu13", "tensorrt-cu13"])

if __name__ == "__main__":
    BENCHMARK.exit()

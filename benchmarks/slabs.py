"""What wide features in slabs save on the CPU (`paramorph_export.graph.for_cpus`), by engine.

The float32 network of a bundle is traced again and cut into slabs of several sizes. Each of these
in each engine has a process of its own, and they run in turns, so that a busy machine is busy for
all; memory is that of the first run, as a single pair has it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from bundles import add_model_option, named_bundles, traced, weights_of
from contenders import Spec, contender
from pairs import BenchmarkError
from paramorph_export.graph import for_cpus
from paramorph_rt.bundle import MANIFEST, Bundle
from paramorph_rt.errors import exit_code
from paramorph_rt.system.files import sha256_of
from record import add_run_options, weights_sha256, write_page, write_result
from tables import differences, markdown_table, origin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from contenders import Answer

WHOLE = 1 << 62  # no features are as many
LARGEST = {"whole": WHOLE} | {f"{n} M": n * 1_000_000 for n in (64, 32, 8, 4)}
DEFAULT_ENGINES = "onnxruntime:fp32,openvino:fp32,openvino:bf16"
# Of the largest displacement; slabs are the same sums, in another order at most.
MOST_DIFFERENCE = {"fp32": 1e-4, "bf16": 2e-2}
PACKAGES = ("openvino", "onnxscript")
COLUMNS = (
    ("network", "network", ""),
    ("engine", "engine", ""),
    ("largest, numbers", "largest", ""),
    ("nodes", "nodes", "d"),
    ("seconds", "median_seconds", ".2f"),
    ("CPU, s", "median_cpu_seconds", ".2f"),
    ("of whole's CPU", "cpu_share", ".2f"),
    ("peak MB", "peak_mb", ".0f"),
)

Row = dict[str, Any]


def write_variants(bundle: Bundle, weights: Path, folder: Path) -> dict[str, tuple[Path, int]]:
    """The bundle again with slabs of each size: its folder, and the number of nodes."""
    entry = bundle.network("fp32")
    graph = traced(bundle, weights)
    variants = {}
    for title, largest in LARGEST.items():
        model = for_cpus(graph, largest)
        copy = folder / title.replace(" ", "")
        copy.mkdir()
        onnx.save(model, copy / entry.file)
        manifest = {**bundle.manifest, "engines": []}
        networks = [n for n in manifest["networks"] if n["file"] == entry.file]
        manifest["networks"] = [{**n, "weights": None} for n in networks]  # they are in the graph
        size = (copy / entry.file).stat().st_size
        manifest["files"] = {entry.file: {"sha256": sha256_of(copy / entry.file), "bytes": size}}
        (copy / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        variants[title] = copy, len(model.graph.node)
    return variants


def measure(
    bundle: Bundle, weights: Path, engines: Sequence[str], runs: int, threads: int
) -> list[Row]:
    """A row per engine and size of slabs."""
    rng = np.random.default_rng(0)
    volumes = [rng.random(bundle.network("fp32").shape, dtype=np.float32) for _ in range(2)]
    rows = []
    with TemporaryDirectory() as name:
        variants = write_variants(bundle, weights, Path(name))
        for engine in engines:
            answers: dict[str, list] = {title: [] for title in variants}
            for _ in range(runs):
                for title, (folder, _nodes) in variants.items():
                    with contender(Spec(engine, threads, str(folder))) as running:
                        answers[title].append(running.run(*volumes))
            rows += _rows(bundle.name, engine, variants, answers)
    return rows


def _rows(
    network: str,
    engine: str,
    variants: Mapping[str, tuple[Path, int]],
    answers: Mapping[str, Sequence[Answer]],
) -> list[Row]:
    first = next(iter(answers))
    expected = answers[first][0].displacement
    allowed = MOST_DIFFERENCE[engine.partition(":")[2]] * float(np.abs(expected).max())
    rows = []
    for title, each in answers.items():
        strays = differences([expected], [each[0].displacement])["mean_difference_vox"]
        if not strays <= allowed:
            raise BenchmarkError(
                f"{engine}, {title}: expected the displacement of the whole features within "
                f"{allowed:.1e} voxel, got {strays:.1e}; correct it before timing it."
            )
        shares = [a.cpu_seconds / b.cpu_seconds for a, b in zip(each, answers[first], strict=True)]
        rows.append(
            {
                "network": network,
                "engine": engine,
                "largest": title,
                "nodes": variants[title][1],
                "median_seconds": statistics.median(a.seconds for a in each),
                "median_cpu_seconds": statistics.median(a.cpu_seconds for a in each),
                "cpu_share": statistics.median(shares),
                "peak_mb": statistics.median(a.peak_mb for a in each),
                "mean_difference_vox": strays,
            }
        )
    return rows


def page(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    return (
        f"# {name}\n\nWritten by `benchmarks/slabs.py` from `{name}.json`: {origin(result)}; "
        f"{result['threads']} threads, {result['runs']} runs of each, in turns.\n\n"
        "Seconds of the first run after loading; memory is the whole process's. No features of "
        "more numbers than the given one are kept at a time.\n\n"
        + markdown_table(result["rows"], COLUMNS)
    )


def run(args: argparse.Namespace) -> None:
    """Measure; write the JSON and the table."""
    bundles, rows = named_bundles(args.model), []
    for bundle in bundles.values():
        weights = weights_of(bundle, args.weights)
        rows += measure(bundle, weights, args.engines.split(","), args.runs, args.threads)
    content = {
        "threads": args.threads,
        "runs": args.runs,
        "load_average": os.getloadavg(),
        "models": {label: weights_sha256(bundle) for label, bundle in bundles.items()},
        "rows": rows,
    }
    path = write_result(args.name, content, packages=PACKAGES)
    write_page(path, page(json.loads(path.read_text(encoding="utf-8")), path.stem))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_model_option(parser)
    add("--weights", type=Path, nargs="*", default=[], help="of bundles that are not shipped")
    add("--engines", default=DEFAULT_ENGINES, help="backend:precision,… (default: %(default)s)")
    add_run_options(parser, "slabs", runs=3, of="turns")
    args = parser.parse_args(argv)
    return exit_code("slabs.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

"""What comes before any work: `paramorph-rt --help`, imports, loading the network by each engine.

A fresh process each time, in turns. The cache folder is empty at first, so that what an engine
caches counts from the second time on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial

from benchmark import ENGINES, MODEL, THREADS, Benchmark, runs
from isolated import call_isolated, empty_cache, run_measured
from paramorph_rt.backends.runtime_cache import user_cache_folder
from paramorph_rt.bundle import bundle_path, load_bundle
from record import Row, succeeded, weights_sha256
from tables import page_of_rows

COLUMNS = (
    ("what", "what", ""),
    ("first, s", "first_seconds", ".3f"),
    ("median after, s", "median_seconds", ".3f"),
    ("most", "most_seconds", ".3f"),
    ("n", "n", "d"),
)


def python_seconds(arguments: Sequence[str], threads: int) -> float:
    """Seconds of a fresh interpreter from start to end."""
    return succeeded(run_measured([sys.executable, *arguments], threads, timeout_s=600))["seconds"]


def loading_seconds(model: str, engine: str, threads: int) -> float:
    """From a bundle's files to a network that is ready, in a fresh interpreter."""
    load = ("contenders:registration_seconds", model, threads, engine)
    return call_isolated(*load, threads=threads).result


def run(args: argparse.Namespace) -> Row:
    """Measure in turns."""
    bundle = load_bundle(bundle_path(args.model))
    threads, model = args.threads, str(bundle.folder)
    steps: dict[str, Callable[[], float]] = {
        "--help": partial(python_seconds, ["-m", "paramorph_rt", "--help"], threads),
        "importing Registration": partial(
            python_seconds, ["-c", "from paramorph_rt import Registration"], threads
        ),
    }
    for engine in args.engines.split(","):
        steps[f"loading, {engine}"] = partial(loading_seconds, model, engine, threads)
    with empty_cache():
        turns = [{what: step() for what, step in steps.items()} for _ in range(args.runs + 1)]
        cached = sorted(file.stat().st_size / 1e6 for file in user_cache_folder().glob("*"))
    rows = []
    for what in steps:
        first, *later = (turn[what] for turn in turns)
        row = {"what": what, "first_seconds": first, "median_seconds": statistics.median(later)}
        rows.append(row | {"most_seconds": max(later), "n": len(later), "seconds": later})
    return {
        "threads": threads,
        "model": bundle.name,
        "weights_sha256": weights_sha256(bundle),
        "cached": ", ".join(f"{size:.0f} MB" for size in cached) or "nothing",
        "rows": rows,
    }


BODY = page_of_rows(
    "{model}. The first two are whole processes. Loading goes from the bundle's files to a network "
    "that is ready, the import of its engine's package included; the first time with no cache. "
    "Cached between runs: {cached}.",
    COLUMNS,
)
OPTIONS = (MODEL, ENGINES, runs(11, "of each, after a first one"), THREADS)
BENCHMARK = Benchmark(run, BODY, OPTIONS, packages=["openvino"])

if __name__ == "__main__":
    BENCHMARK.exit()

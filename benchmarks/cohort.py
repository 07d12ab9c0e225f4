"""A cohort's pairs per minute beside single calls of `infer`, and its memory over many pairs.

The pairs are all ordered ones of the labelled volumes of a folder. Memory is measured over those at
their own resolution, and over many pairs of the same brains at a quarter of it, which show a leak
that a few pairs cannot. Each measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import nibabel as nib
import numpy as np

from benchmark import CORES, FOLDER, Benchmark, option
from costs import peak_mb, resident_mb, timed
from isolated import call_isolated, run_measured
from jobs import infer_command
from paramorph_rt.cohort.images import images_with_labels
from paramorph_rt.cohort.pairs import Pair, pairs_of_all
from paramorph_rt.cohort.run import run_cohort
from paramorph_rt.cohort.work import PAIRS
from paramorph_rt.loaded import loaded
from paramorph_rt.request import Inputs, Options
from record import Row, succeeded
from tables import page_of_rows

COARSER = 4
# The first pairs fill caches and thread pools; what comes after should stay.
SETTLED = 20
COLUMNS = (
    ("pairs", "pairs", "d"),
    ("at once", "at_once", "d"),
    ("pairs / minute", "pairs_per_minute", ".1f"),
    ("CPU s / pair", "cpu_seconds_per_pair", ".1f"),
    ("MB resident at the end", "resident_at_the_end_mb", ".0f"),
    ("MB at most", "peak_mb", ".0f"),
    ("growth, MB per 100 pairs", "growth_mb_per_100_pairs", ".1f"),
)


def run(args: argparse.Namespace) -> Row:
    """Single calls, then cohorts."""
    images = [replace(image, labels=None) for image in images_with_labels([args.folder])]
    pairs = pairs_of_all(images)[: args.pairs]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)

        def cohort(pairs: Sequence[Pair], at_once: int, out: str) -> Row:
            call = ("cohort:register", pairs, args.backend, at_once, scratch / out)
            return call_isolated(*call, threads=CORES).result

        rows = [single(pairs[: args.single], args.backend, scratch / "single")]
        rows += [cohort(pairs, n, f"cohort-{n}") for n in args.at_once]
        if args.small:
            small = list(islice(cycle(_coarser(pairs, scratch / "coarse")), args.small))
            small = [replace(pair, name=f"{n}") for n, pair in enumerate(small)]
            rows.append(cohort(small, 3, "small"))
    return {"pairs": len(pairs), "rows": rows}


def single(pairs: Sequence[Pair], backend: str, out: Path) -> Row:
    """`paramorph-rt infer` for each pair, a process each."""
    calls = []
    for pair in pairs:
        command = infer_command(pair.inputs.files(), out / PAIRS / pair.name, backend)
        calls.append(succeeded(run_measured(command, CORES, timeout_s=1800)))
    seconds = [call["seconds"] for call in calls]
    return {
        "pairs": len(calls),
        "seconds": seconds,
        "pairs_per_minute": 60 / statistics.median(seconds),
        "cpu_seconds_per_pair": statistics.mean(call["cpu_seconds"] for call in calls),
        "peak_mb": max(call["peak_mb"] for call in calls),
    }


def register(pairs: Sequence[Pair], backend: str, at_once: int, out: Path) -> Row:
    """A cohort in this process, which is its own: see `call_isolated`."""
    options = Options(backend=backend)
    out.mkdir(parents=True)
    memory = []

    def work() -> None:
        for outcome in run_cohort(pairs, options, out, at_once=at_once):
            assert outcome.status == "done", outcome.note
            memory.append(resident_mb())

    load_seconds = timed(lambda: loaded(options)).seconds
    seconds = timed(work).seconds
    return {
        "at_once": at_once,
        "pairs": len(pairs),
        "load_seconds": load_seconds,
        "seconds": seconds,
        "pairs_per_minute": 60 * len(pairs) / seconds,
        "cpu_seconds_per_pair": time.process_time() / len(pairs),
        "resident_mb": memory,
        "resident_at_the_end_mb": memory[-1],
        "growth_mb_per_100_pairs": _growth(memory),
        "peak_mb": peak_mb(),
    }


def _growth(memory: Sequence[float]) -> float | None:
    """Slope of a line through what is resident when pairs end, in megabytes per 100 pairs."""
    settled = memory[SETTLED:]
    if len(settled) < SETTLED:
        return None
    return float(100 * np.polynomial.polynomial.polyfit(np.arange(len(settled)), settled, 1)[1])


def _coarser(pairs: Sequence[Pair], folder: Path) -> list[Pair]:
    """The same pairs of every fourth voxel, without labels."""
    folder.mkdir()
    for path in {path for pair in pairs for path in (pair.inputs.moving, pair.inputs.fixed)}:
        image = nib.load(path).slicer[::COARSER, ::COARSER, ::COARSER]
        nib.save(image, folder / path.name)
    return [
        Pair(pair.name, Inputs(folder / pair.inputs.moving.name, folder / pair.inputs.fixed.name))
        for pair in pairs
    ]


TEXT = (
    "Pairs without labels: single calls of `infer` first, then cohorts; the last at a quarter of "
    "the resolution."
)
OPTIONS = (
    FOLDER,
    option("--pairs", type=int, default=12, help="at their own resolution"),
    option("--small", type=int, default=200, help="at a quarter of it"),
    option("--single", type=int, default=4, help="calls of infer"),
    option("--at-once", type=int, nargs="+", default=[1, 3], help="of cohorts"),
    option("--backend", default="openvino", help="inference engine"),
)
BENCHMARK = Benchmark(run, page_of_rows(TEXT, COLUMNS), OPTIONS, packages=["openvino"])

if __name__ == "__main__":
    BENCHMARK.exit()

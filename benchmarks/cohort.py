"""A cohort's pairs per minute beside single calls of `infer`, and its memory over many pairs.

The pairs are all ordered ones of the labelled volumes of a folder. Memory is measured over those at
their own resolution, and over many pairs of the same brains at a quarter of it, which show a leak
that a few pairs cannot. Each measurement has a process of its own.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from isolated import peak_mb, run_measured
from pairs import BenchmarkError
from paramorph_rt.cohort.images import images_with_labels
from paramorph_rt.cohort.pairs import Pair, pairs_of_all
from paramorph_rt.cohort.run import run_cohort
from paramorph_rt.cohort.work import PAIRS
from paramorph_rt.errors import exit_code
from paramorph_rt.loaded import loaded
from paramorph_rt.request import Inputs, Options
from record import write_result

COARSER = 4
# The first pairs fill caches and thread pools; what comes after should stay.
SETTLED = 20


def main() -> None:
    args = _arguments()
    pairs = pairs_of_all(images_with_labels([args.folder]))[: args.pairs]
    if not args.labels:
        pairs = [replace(pair, moving_labels=None, fixed_labels=None) for pair in pairs]
    with tempfile.TemporaryDirectory() as scratch:
        result = {"pairs": len(pairs), "labels": args.labels, **_rates(args, pairs, Path(scratch))}
        if args.small:
            small = list(islice(cycle(_coarser(pairs, Path(scratch))), args.small))
            small = [replace(pair, name=f"{n}") for n, pair in enumerate(small)]
            result["small"] = _isolated(_cohort, small, args.backend, 3, Path(scratch) / "small")
    for entry in (*result["cohort"].values(), result.get("small")):
        if entry:
            print(_sentence(entry))
    print(f"single calls: {60 / statistics.median(result['single']['seconds']):.1f} pairs a minute")
    print(write_result(args.name, result, ["openvino"]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="volumes NAME_*.nii.gz with NAME_labels.nii.gz")
    add("--pairs", type=int, default=12, help="at their own resolution (default: 12)")
    add("--small", type=int, default=200, help="at a quarter of it (default: 200)")
    add("--single", type=int, default=4, help="calls of infer (default: 4)")
    add("--at-once", type=int, nargs="+", default=[1, 3], help="of cohorts (default: 1 3)")
    add("--labels", action="store_true", help="warp and compare label maps as well")
    add("--backend", default="openvino", help="inference engine (default: openvino)")
    add("--name", default="cohort", help="of the result (default: cohort)")
    return parser.parse_args()


def _rates(args: argparse.Namespace, pairs: Sequence[Pair], scratch: Path) -> dict[str, Any]:
    single = _single(pairs[: args.single], args.backend, scratch / "single")
    cohort = {
        str(n): _isolated(_cohort, pairs, args.backend, n, scratch / f"cohort-{n}")
        for n in args.at_once
    }
    _check_same(pairs[0], scratch / "single", scratch / f"cohort-{args.at_once[0]}")
    return {"single": single, "cohort": cohort}


def _isolated(function: Any, *arguments: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _single(pairs: Sequence[Pair], backend: str, out: Path) -> dict[str, Any]:
    """`paramorph-rt infer` for each pair, a process each."""
    calls = []
    for pair in pairs:
        files = {f"--{role.replace('_', '-')}": path for role, path in pair.inputs.files().items()}
        words = [word for option in files.items() for word in option]
        words += ["--out-dir", out / PAIRS / pair.name, "--backend", backend]
        command = [sys.executable, "-m", "paramorph_rt", "infer", *map(str, words)]
        calls.append(run_measured(command, os.cpu_count(), timeout_s=1800))
        if "error" in calls[-1]:
            raise BenchmarkError(f"{pair.name}: expected a registration, got {calls[-1]['error']}.")
    return {
        "seconds": [call["seconds"] for call in calls],
        "cpu_seconds_per_pair": statistics.mean(call["cpu_seconds"] for call in calls),
        "peak_mb": max(call["peak_mb"] for call in calls),
    }


def _cohort(pairs: Sequence[Pair], backend: str, at_once: int, out: Path) -> dict[str, Any]:
    options = Options(backend=backend)
    out.mkdir(parents=True)
    start = time.perf_counter()
    loaded(options)
    ready = time.perf_counter()
    memory = []
    for outcome in run_cohort(pairs, options, out, at_once=at_once):
        assert outcome.status == "done", outcome.note
        memory.append(_resident_mb())
    seconds = time.perf_counter() - ready
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "at_once": at_once,
        "pairs": len(pairs),
        "load_seconds": ready - start,
        "seconds": seconds,
        "pairs_per_minute": 60 * len(pairs) / seconds,
        "cpu_seconds_per_pair": (used.ru_utime + used.ru_stime) / len(pairs),
        "resident_mb": memory,
        "growth_mb_per_100_pairs": _growth(memory),
        "peak_mb": peak_mb(),
    }


def _growth(memory: Sequence[float]) -> float | None:
    """Slope of a line through what is resident when pairs end, in megabytes per 100 pairs."""
    settled = memory[SETTLED:]
    if len(settled) < SETTLED:
        return None
    return float(100 * np.polynomial.polynomial.polyfit(np.arange(len(settled)), settled, 1)[1])


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * resource.getpagesize() / 2**20


def _coarser(pairs: Sequence[Pair], scratch: Path) -> list[Pair]:
    """The same pairs of every fourth voxel, without labels."""
    folder = scratch / "coarse"
    folder.mkdir()
    for path in {path for pair in pairs for path in (pair.inputs.moving, pair.inputs.fixed)}:
        image = nib.load(path).slicer[::COARSER, ::COARSER, ::COARSER]
        nib.save(image, folder / path.name)
    return [
        Pair(pair.name, Inputs(folder / pair.inputs.moving.name, folder / pair.inputs.fixed.name))
        for pair in pairs
    ]


def _check_same(pair: Pair, *outs: Path) -> None:
    """The cohort's results are those of `infer`."""
    first, second = (
        nib.load(out / PAIRS / pair.name / "displacement.nii.gz").get_fdata() for out in outs
    )
    np.testing.assert_allclose(first, second, atol=1e-3)


def _sentence(entry: dict[str, Any]) -> str:
    growth = entry["growth_mb_per_100_pairs"]
    said = "" if growth is None else f", growing by {growth:.1f} MB per 100 pairs"
    return (
        f"{entry['pairs']} pairs, {entry['at_once']} at once: {entry['pairs_per_minute']:.1f} a "
        f"minute, {entry['cpu_seconds_per_pair']:.1f} s of CPU each; "
        f"{entry['resident_mb'][-1]:.0f} MB resident at the end, {entry['peak_mb']:.0f} MB at "
        f"most{said}"
    )


if __name__ == "__main__":
    sys.exit(exit_code("cohort.py", main))

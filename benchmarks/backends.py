"""Engines and precisions that run a bundle's network, side by side: seconds, memory, differences.

Every engine has its own process, loaded once; they run the same labelled pairs in turns, so that a
busy machine is busy for all. Differences are those to the first engine, on the network grid; Dice
is that of the whole registration, on the fixed image's own grid.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation import LabelledPair, load_pair, mean_dice
from methods import ENGINES, peak_mb
from pairs import BenchmarkError, add_pair_options, labelled_pairs
from paramorph_rt.affine import align_affine
from paramorph_rt.bundle import Bundle, default_bundle_path, load_bundle
from paramorph_rt.errors import ParamorphError, exit_code
from paramorph_rt.field import field_from_network
from paramorph_rt.preprocess import PreparedPair, prepare_pair
from paramorph_rt.warp import warp_volume
from record import weights_sha256, write_page, write_result
from tables import differences, markdown_table

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

COLUMNS = (
    ("engine", "engine", ""),
    ("network, s", "median_seconds", ".2f"),
    ("p90, s", "p90_seconds", ".2f"),
    ("n", "n", "d"),
    ("loading, s", "load_seconds", ".1f"),
    ("peak MB", "peak_mb", ".0f"),
    ("mean difference, voxel", "mean_difference_vox", ".1e"),
    ("p99.9", "p999_difference_vox", ".1e"),
    ("largest", "max_difference_vox", ".1e"),
    ("Dice", "dice", ".4f"),
    ("change of Dice", "dice_change", "+.1e"),
)


@dataclass(frozen=True)
class Case:
    """A pair, ready for the network, and what its displacement is judged with."""

    name: str
    pair: LabelledPair
    affine: np.ndarray
    prepared: PreparedPair

    def dice(self, displacement_vox: np.ndarray, sampling: str) -> float:
        """Mean Dice of the registration that this output of the network makes."""
        field = field_from_network(displacement_vox, self.prepared.grid, sampling)
        field = field.resampled_to(self.pair.fixed.grid).composed_with_affine(self.affine)
        return mean_dice(warp_volume(self.pair.moving_labels, field, "nearest"), self.pair)


class Contender:
    """An engine in a process of its own.

    Attributes:
        load_seconds: From the bundle's files to an engine that is ready.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.load_seconds = self._answer()

    def run(self, case: Case) -> tuple[np.ndarray, float, float]:
        """Displacement, seconds of the network, the process's peak memory so far (10⁶ bytes)."""
        self._connection.send((case.prepared.moving, case.prepared.fixed))
        return self._answer()

    def _answer(self) -> Any:
        answer = self._connection.recv()
        if isinstance(answer, ParamorphError):
            raise answer
        return answer


@contextmanager
def contender(engine: str, model: str, threads: int) -> Iterator[Contender]:
    """Start a process for a key of `ENGINES`, and end it after the block."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, engine, model, threads))
    process.start()
    theirs.close()
    try:
        yield Contender(ours)
    finally:
        ours.close()  # which ends its loop
        process.join()


def prepared_cases(folder: Path, bundle: Bundle, table: Path | None) -> list[Case]:
    """The labelled pairs of a folder on the bundle's network grid."""
    cases = []
    for moving, fixed in labelled_pairs(folder, table):
        pair = load_pair(moving, fixed)
        affine = align_affine(pair.moving, pair.fixed).affine
        prepared = prepare_pair(pair.moving, pair.fixed, affine, bundle.inputs)
        cases.append(Case(f"{moving.name} → {fixed.name}", pair, affine, prepared))
    return cases


def measure(
    engines: Sequence[str], bundle: Bundle, cases: Sequence[Case], runs: int, threads: int
) -> list[dict[str, Any]]:
    """Run every case once to compare and warm up, then `runs` times to measure, in turns.

    Returns:
        A row per engine, the first of which the others are compared with.
    """
    with ExitStack() as stack:
        contenders = {
            engine: stack.enter_context(contender(engine, str(bundle.folder.resolve()), threads))
            for engine in engines
        }
        outputs = {e: [c.run(case)[0] for case in cases] for e, c in contenders.items()}
        seconds: dict[str, list[float]] = {engine: [] for engine in engines}
        memory = {}
        for number in range(runs):
            case = cases[number % len(cases)]
            for engine, runner in contenders.items():
                _, took, memory[engine] = runner.run(case)
                seconds[engine].append(took)
        loading = {engine: runner.load_seconds for engine, runner in contenders.items()}
    dice = {
        engine: [case.dice(u, bundle.sampling) for case, u in zip(cases, found, strict=True)]
        for engine, found in outputs.items()
    }
    reference = engines[0]
    return [
        {
            "engine": engine,
            "median_seconds": statistics.median(seconds[engine]),
            "p90_seconds": float(np.quantile(seconds[engine], 0.9)),
            "n": runs,
            "load_seconds": loading[engine],
            "peak_mb": memory[engine],
            **(differences(outputs[reference], outputs[engine]) if engine != reference else {}),
            "dice": statistics.mean(dice[engine]),
            "dice_change": statistics.mean(dice[engine]) - statistics.mean(dice[reference]),
            "largest_dice_change": max(
                (b - a for a, b in zip(dice[reference], dice[engine], strict=True)), key=abs
            ),
            "seconds": seconds[engine],
        }
        for engine in engines
    ]


def table(result: dict[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    versions = ", ".join(f"{p} {v}" for p, v in result["versions"].items() if v)
    shape = " × ".join(str(n) for n in result["shape"])
    return (
        f"# {name}\n\n"
        f"Written by `benchmarks/backends.py` from `{name}.json`: {result['model']}, "
        f"{result['passes']} passes at {shape}, {len(result['pairs'])} pairs, {result['threads']} "
        f"threads of {result['processor']}, commit {result['commit']}; {versions}.\n\n"
        "Seconds are those of the network alone, in turns; memory is the whole process's. "
        f"Differences of the displacement, as lengths, are to {result['rows'][0]['engine']}.\n\n"
        + markdown_table(result["rows"], COLUMNS)
    )


def run(args: argparse.Namespace) -> None:
    """Measure; write the JSON and the table."""
    engines = args.engines.split(",")
    if unknown := [engine for engine in engines if engine not in ENGINES]:
        raise BenchmarkError(
            f"--engines: expected some of {', '.join(ENGINES)}, got {unknown[0]}; correct it."
        )
    bundle = load_bundle(args.model or default_bundle_path())
    cases = prepared_cases(args.folder, bundle, args.pairs)
    rows = measure(engines, bundle, cases, args.runs, args.threads)
    path = write_result(
        args.name,
        {
            "threads": args.threads,
            "model": bundle.name,
            "weights_sha256": weights_sha256(bundle),
            "passes": bundle.manifest["network"].get("passes", 1),
            "shape": list(bundle.inputs.grid.shape),
            "pairs": [case.name for case in cases],
            "rows": rows,
        },
        packages=["openvino"],
    )
    page = table(json.loads(path.read_text()), path.stem)
    write_page(path, page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_pair_options(parser)
    add("--engines", default=",".join(ENGINES), help="the first is compared with (%(default)s)")
    add("--model", type=Path, metavar="BUNDLE", help="(default: the shipped one)")
    add("--runs", type=int, default=20, help="of each, after one per pair (default: %(default)s)")
    add("--name", default="backends", help="of the result files (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, default=cores, help="of every engine (default: all cores)")
    args = parser.parse_args()
    return exit_code("backends.py", lambda: run(args))


def _serve(connection: Connection, engine: str, model: str, threads: int) -> None:
    """The other process: load, then run whatever comes until the connection closes."""
    try:
        start = time.perf_counter()
        backend = ENGINES[engine](model, threads).backend
        connection.send(time.perf_counter() - start)
        while True:
            moving, fixed = connection.recv()
            start = time.perf_counter()
            displacement = backend.run(moving, fixed)
            connection.send((displacement, time.perf_counter() - start, peak_mb()))
    except EOFError:
        pass
    except ParamorphError as err:
        connection.send(err)


if __name__ == "__main__":
    sys.exit(main())

"""How time and memory of `paramorph-rt infer` grow: with voxels, threads and the number of pairs.

The pair is Colin27 and itself deformed, at several resolutions, so that no other data is needed.
Sizes and threads are whole jobs, a process each; pairs go one after the other through one
`Registration` that is loaded once, and are written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark import CORES, MODEL, Benchmark, option, runs
from bundles import single_bundle
from colin import SIDE_MM, write_colin_pair
from isolated import empty_cache
from jobs import START_UP, Job, Task
from pairs import Case
from record import Result, Row, succeeded, weights_sha256
from tables import markdown_table, medians, stages_of

COSTS = (("seconds", "seconds", ".2f"), ("CPU, s", "cpu_seconds", ".2f"))
MEMORY = (("peak MB", "peak_mb", ".0f"),)
TIMEOUT_S = 1800


def job_row(job: Job, case: Case, threads: int, count: int | None = None) -> Row:
    """One whole job, or so many pairs through one `Registration`, in a process of its own."""
    with TemporaryDirectory() as out:
        task = Task.of(case, Path(out))
        if count is None:
            return succeeded(job.run(task, threads, TIMEOUT_S))
        return succeeded(job.run_many(task, count, threads, TIMEOUT_S))


@empty_cache()
def run(args: argparse.Namespace) -> Row:
    """Measure in turns."""
    label, bundle = single_bundle(args.model)
    job = Job(label, model=str(bundle.folder), engine=args.engine)
    most = max(args.threads)
    with TemporaryDirectory() as name:
        sizes = {*args.sizes, args.size}
        pairs = {size: write_colin_pair(Path(name) / str(size), size) for size in sizes}
        whole = pairs[args.size]
        work = {
            **{("size", n): lambda n=n: job_row(job, pairs[n], most) for n in args.sizes},
            **{("threads", n): lambda n=n: job_row(job, whole, n) for n in args.threads},
            **{("pairs", n): lambda n=n: job_row(job, whole, most, n) for n in args.pairs},
        }
        job_row(job, pairs[min(pairs)], most)  # so that packages are in memory, kernels compiled
        rows: dict[tuple[str, int], list[Row]] = {key: [] for key in work}
        for _ in range(args.runs):
            for key, measure in work.items():
                rows[key].append(measure())
                print(*key, json.dumps(rows[key][-1]), file=sys.stderr, flush=True)
    figures = [
        {
            kind: n,
            **medians(each, (key for _, key, _ in (*COSTS, *MEMORY))),
            "each_seconds": [row["seconds"] for row in each],
        }
        for (kind, n), each in rows.items()
    ]
    return {
        "model": label,
        "weights_sha256": weights_sha256(bundle),
        "engine": args.engine,
        "runs": args.runs,
        "with_threads": most,
        "size": args.size,
        "sizes": [row for row in figures if "size" in row],
        "threads": [row for row in figures if "threads" in row],
        "pairs": [row for row in figures if "pairs" in row],
    }


def body(result: Result) -> str:
    """The text of a result's page."""
    stages = [(stage, stage, ".2f") for stage in stages_of(result["sizes"])]
    sizes = [{**row, **row["stages"]} for row in result["sizes"]]
    pairs = [{**row, "each": row["seconds"] / row["pairs"]} for row in result["pairs"]]
    return (
        f"{result['model']} by {result['engine']}, Colin27 with 116 labels and itself deformed. "
        f"Medians of {result['runs']} in turns.\n\n"
        f"Volumes of size³ voxels, {result['with_threads']} threads; {START_UP} is all beside the "
        "stages.\n\n"
        + markdown_table(sizes, [("size", "size", "d"), *COSTS, *MEMORY, *stages])
        + f"\nThreads, at {result['size']}³:\n\n"
        + markdown_table(result["threads"], [("threads", "threads", "d"), *COSTS, *MEMORY])
        + f"\nPairs of {result['size']}³ through one `Registration`:\n\n"
        + markdown_table(
            pairs,
            [("pairs", "pairs", "d"), *COSTS, ("seconds / pair", "each", ".2f"), *MEMORY],
        )
    )


OPTIONS = (
    option("--sizes", type=int, nargs="+", default=[96, 128, 160, SIDE_MM, 256]),
    option("--size", type=int, default=SIDE_MM, help="for threads and pairs"),
    option("--threads", type=int, nargs="+", default=sorted({1, *range(2, CORES + 1, 2), CORES})),
    option("--pairs", type=int, nargs="+", default=[1, 2, 5]),
    runs(3, "of each, in turns"),
    MODEL,
    option("--engine", default="auto:auto", help="backend:precision"),
)
BENCHMARK = Benchmark(run, body, OPTIONS, packages=["openvino"])

if __name__ == "__main__":
    BENCHMARK.exit()

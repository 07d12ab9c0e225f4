"""How time and memory of `paramorph-rt infer` grow with voxels and threads.

The pair is Colin27 and itself deformed, at several resolutions, so that no other data is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark import CORES, MODEL, Benchmark, option, runs
from colin import SIDE_MM, write_colin_pair
from isolated import empty_cache
from jobs import START_UP, Job, Task
from pairs import Case
from paramorph_rt.bundle import bundle_path, load_bundle
from record import Result, Row, succeeded, weights_sha256
from tables import markdown_table, medians, stages_of

COSTS = (
    ("seconds", "seconds", ".2f"),
    ("CPU, s", "cpu_seconds", ".2f"),
    ("peak MB", "peak_mb", ".0f"),
)
TIMEOUT_S = 1800


def whole_job(job: Job, case: Case, threads: int) -> Row:
    """A process of its own, from files to files."""
    with TemporaryDirectory() as out:
        return succeeded(job.run(Task.of(case, Path(out)), threads, TIMEOUT_S))


@empty_cache()
def run(args: argparse.Namespace) -> Row:
    """Measure in turns."""
    bundle = load_bundle(bundle_path(args.model))
    job = Job(bundle.name, model=str(bundle.folder), engine=args.engine)
    most = max(args.threads)
    with TemporaryDirectory() as name:
        sizes = {*args.sizes, args.size}
        pairs = {size: write_colin_pair(Path(name) / str(size), size) for size in sizes}
        work = {("size", n): (pairs[n], most) for n in args.sizes}
        work |= {("threads", n): (pairs[args.size], n) for n in args.threads}
        whole_job(job, pairs[min(pairs)], most)  # so that packages are in memory, kernels compiled
        rows: dict[tuple[str, int], list[Row]] = {key: [] for key in work}
        for _ in range(args.runs):
            for key, (case, threads) in work.items():
                rows[key].append(whole_job(job, case, threads))
                print(*key, json.dumps(rows[key][-1]), file=sys.stderr, flush=True)
    figures: dict[str, list[Row]] = {"size": [], "threads": []}
    for (kind, n), each in rows.items():
        figure = {kind: n, **medians(each, (key for _, key, _ in COSTS))}
        figures[kind].append(figure | {"each_seconds": [row["seconds"] for row in each]})
    return {
        "model": bundle.name,
        "weights_sha256": weights_sha256(bundle),
        **{key: getattr(args, key) for key in ("engine", "runs", "size")},
        "with_threads": most,
        "sizes": figures["size"],
        "threads": figures["threads"],
    }


def body(result: Result) -> str:
    """The text of a result's page."""
    stages = [(stage, stage, ".2f") for stage in stages_of(result["sizes"])]
    sizes = [{**row, **row["stages"]} for row in result["sizes"]]
    return (
        f"{result['model']} by {result['engine']}, Colin27 with 116 labels and itself deformed. "
        f"Medians of {result['runs']} in turns.\n\n"
        f"Volumes of size³ voxels, {result['with_threads']} threads; {START_UP} is all beside the "
        "stages.\n\n"
        + markdown_table(sizes, [("size", "size", "d"), *COSTS, *stages])
        + f"\nThreads, at {result['size']}³:\n\n"
        + markdown_table(result["threads"], [("threads", "threads", "d"), *COSTS])
    )


OPTIONS = (
    option("--sizes", type=int, nargs="+", default=[96, 128, 160, SIDE_MM, 256]),
    option("--size", type=int, default=SIDE_MM, help="for threads"),
    option("--threads", type=int, nargs="+", default=sorted({1, *range(2, CORES + 1, 2), CORES})),
    runs(3, "of each, in turns"),
    MODEL,
    option("--engine", default="auto:auto", help="backend:precision"),
)
BENCHMARK = Benchmark(run, body, OPTIONS, packages=["openvino"])

if __name__ == "__main__":
    BENCHMARK.exit()

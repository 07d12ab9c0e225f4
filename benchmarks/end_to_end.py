"""The whole job as a user runs it, beside peers who do the same, each in its own process.

Each job reads two volumes and their labels, aligns them affinely, registers them, warps image and
labels, takes the mean Dice of all labels and writes everything; what it wrote is judged as in
accuracy.py. Pairs are done in turns, one job after the other, and jobs are compared within the same
pair and turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from accuracy import measure
from benchmark import MODELS, OPTIONAL_FOLDER, THREADS, Benchmark, option, runs
from bundles import named_bundles
from colin import SIDE_MM, write_colin_pair
from isolated import empty_cache
from jobs import JOBS, YARDSTICKS, Job, jobs_named, packages_of
from pairs import Case, labelled_pairs
from record import Result, Row, Rows, weights_sha256
from tables import failures, grouped, markdown_table, measured, medians, stages_of

DEFAULT_METHODS = "default,no-network,unrefined,syn,greedy"
WARM_UP_SIZE = 48
AVERAGES = ("seconds", "cpu_seconds", "peak_mb", "dice")
COLUMNS = (
    ("job", "job", ""),
    ("seconds", "seconds", ".1f"),
    ("CPU, s", "cpu_seconds", ".1f"),
    *(
        (f"times faster than {peer}", f"faster_than_{name}", ".1f")
        for name, peer in YARDSTICKS.items()
    ),
    *((f"of {peer}'s CPU", f"cpu_of_{name}", ".3f") for name, peer in YARDSTICKS.items()),
    ("peak MB", "peak_mb", ".0f"),
    ("Dice", "dice", ".3f"),
    ("n", "n", "d"),
)


def whole(job: Job, case: Case, args: argparse.Namespace) -> Row:
    """One job on one pair as `accuracy.measure` judges it; its `seconds` are the whole job's."""
    row = measure(job, case, case.load(), args.threads, args.timeout)
    return row | {"job": job.title, "ours": job.peer is None, "seconds": row.get("job_seconds")}


def summarise(rows: Iterable[Row]) -> list[Row]:
    """A row per job: medians of all it did, and its time beside that of each yardstick.

    How many times faster is the median over the same pairs and turns.
    """
    done = [row for row in rows if "error" not in row]
    summary = []
    for (title,), mine in grouped(done, "job").items():
        entry: Row = {"job": title, "n": len(mine), "ours": mine[0]["ours"]}
        entry |= medians(mine, AVERAGES)
        for name, peer in YARDSTICKS.items():
            theirs = {(row["pair"], row["turn"]): row for row in done if row["job"] == peer}
            beside = [(row, theirs.get((row["pair"], row["turn"]))) for row in mine]
            beside = [(row, other) for row, other in beside if other]
            if beside:
                faster, cpu = (
                    statistics.median(row[key] / other[key] for row, other in beside)
                    for key in ("seconds", "cpu_seconds")
                )
                entry |= {f"faster_than_{name}": 1 / faster, f"cpu_of_{name}": cpu}
        summary.append(entry)
    return summary


def body(result: Result) -> str:
    """The text of a result's page."""
    rows = summarise(result["rows"])
    return (
        f"Pairs {', '.join(result['pairs'])}.\n\n"
        "Medians, from the start of a process to its end: read two volumes with their labels, "
        "align, register, warp both, Dice of all labels, write everything. Ratios are of the same "
        "pair and turn.\n\n"
        + markdown_table(rows, measured(COLUMNS, rows))
        + "\nSeconds of each stage; start-up is all else: interpreter, imports, reading the "
        "bundle, and the end.\n\n"
        + markdown_table(
            [{"job": row["job"], **row["stages"]} for row in rows],
            [("job", "job", ""), *((stage, stage, ".2f") for stage in stages_of(rows))],
        )
        + failures(result["rows"], "job", "pair")
    )


def headline(result: Result) -> dict[str, float]:
    """Seconds of our jobs."""
    ours = [row for row in summarise(result["rows"]) if row["ours"]]
    return {f"seconds from files to files, {row['job']}": row["seconds"] for row in ours}


@empty_cache()
def run(args: argparse.Namespace) -> Iterator[Path]:
    """Warm up, measure."""
    bundles = named_bundles(args.model)
    jobs = jobs_named(args.methods, bundles)
    with TemporaryDirectory() as name:
        folder = Path(name)
        small = write_colin_pair(folder / "small", WARM_UP_SIZE)
        for job in jobs:  # so that packages are in memory and kernels compiled
            whole(job, small, args)
        if args.folder is None:
            cases = [write_colin_pair(folder / "colin", args.size)]
        else:
            cases = labelled_pairs(args.folder, args.pairs)
        content = {
            "threads": args.threads,
            "models": {label: weights_sha256(bundle) for label, bundle in bundles.items()},
            "pairs": [case.name for case in cases],
        }
        rows = Rows(args.name, content, packages_of(jobs))
        for turn in range(args.runs):
            for case in cases:
                for job in jobs:
                    rows.note({"turn": turn, **whole(job, case, args)})
    return iter([rows.write(summary=summarise(rows))])


OPTIONS = (
    OPTIONAL_FOLDER,
    option("--pairs", type=int, default=4, help="of the folder, at most"),
    option("--size", type=int, default=SIDE_MM, help="of Colin27's cube"),
    runs(1, "turns over all pairs"),
    MODELS,
    option("--methods", default=DEFAULT_METHODS, help=f"of {', '.join(JOBS)}"),
    THREADS,
    option("--timeout", type=float, default=1800, metavar="S", help="of a job on a pair"),
)
BENCHMARK = Benchmark(run, body, OPTIONS, "end-to-end", headline=headline)

if __name__ == "__main__":
    BENCHMARK.exit()

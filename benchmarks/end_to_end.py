"""The whole job as a user runs it, beside peers who do the same, each in its own process.

Each job reads two volumes and their labels, aligns them affinely, registers them, warps image and
labels, takes the mean Dice of all labels and writes everything. Pairs are done in turns, one job
after the other, and jobs are compared within the same pair and turn.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmark import MODEL, OPTIONAL_FOLDER, THREADS, Benchmark, option, runs
from bundles import named_bundles
from charts import stages_of, stages_plot
from colin import SIDE_MM, write_colin_pair
from evaluation import load_pair, mean_dice
from isolated import empty_cache
from jobs import FIELD, JOBS, YARDSTICKS, Job, Task, jobs_named, packages_of
from pairs import labelled_pairs
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.transforms.itk import read_displacement
from record import Result, Row, Rows, weights_sha256
from tables import failures, grouped, markdown_table, measured

if TYPE_CHECKING:
    from paramorph.data import SubjectFiles

DEFAULT_METHODS = "default,no-network,unrefined,syn,greedy"
WARM_UP_SIZE = 48
# A peer's mean may count another label than ours; a field misread changes all of them.
DICE_TOLERANCE = 0.01
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


def measure(
    job: Job, moving: SubjectFiles, fixed: SubjectFiles, threads: int, timeout_s: float
) -> Row:
    """One job on one pair: its figures, or its `error`; the field it wrote is judged by us, too."""
    row = {"job": job.title, "ours": job.peer is None, "pair": f"{moving.name} → {fixed.name}"}
    with TemporaryDirectory() as name:
        out = Path(name)
        row |= job.run(Task.of(moving, fixed, out), threads, timeout_s)
        if "error" in row:
            return row
        pair = load_pair(moving, fixed)
        field = read_displacement(out / FIELD)
        judged = mean_dice(warp_volume(pair.moving_labels, field, "nearest"), pair)
    if not abs(judged - row["dice"]) <= DICE_TOLERANCE:  # nor NaN
        claimed = row["dice"]
        return row | {"error": f"claims a Dice of {claimed:.3f}, its field gives {judged:.3f}"}
    return row | {"dice": judged}


def summarise(rows: Iterable[Row]) -> list[Row]:
    """A row per job: medians of all it did, and its time beside that of each yardstick.

    How many times faster is the median over the same pairs and turns.
    """
    done = [row for row in rows if "error" not in row]
    summary = []
    for (title,), mine in grouped(done, "job").items():
        entry: Row = {"job": title, "n": len(mine), "ours": mine[0]["ours"]}
        entry |= {key: statistics.median(row[key] for row in mine) for key in AVERAGES}
        entry["stages"] = {
            stage: statistics.median(row["stages"].get(stage, 0.0) for row in mine)
            for stage in dict.fromkeys(stage for row in mine for stage in row["stages"])
        }
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
            measure(job, *small, args.threads, args.timeout)
        if args.folder is None:
            pairs = [write_colin_pair(folder / "colin", args.size)]
        else:
            pairs = labelled_pairs(args.folder)[: args.pairs]
        content = {
            "threads": args.threads,
            "models": {label: weights_sha256(bundle) for label, bundle in bundles.items()},
            "pairs": [f"{moving.name} → {fixed.name}" for moving, fixed in pairs],
        }
        rows = Rows(args.name, content, packages_of(jobs))
        for turn in range(args.runs):
            for pair in pairs:
                for job in jobs:
                    rows.note({"turn": turn, **measure(job, *pair, args.threads, args.timeout)})
    return iter([rows.write(summary=summarise(rows))])


OPTIONS = (
    OPTIONAL_FOLDER,
    option("--pairs", type=int, default=4, help="of the folder, at most"),
    option("--size", type=int, default=SIDE_MM, help="of Colin27's cube"),
    runs(1, "turns over all pairs"),
    MODEL,
    option("--methods", default=DEFAULT_METHODS, help=f"of {', '.join(JOBS)}"),
    THREADS,
    option("--timeout", type=float, default=1800, metavar="S", help="of a job on a pair"),
)
BENCHMARK = Benchmark(run, body, OPTIONS, "end-to-end", plot=stages_plot, headline=headline)

if __name__ == "__main__":
    BENCHMARK.exit()

"""The whole job as a user runs it, beside peers who do the same, each in its own process.

Each job reads two volumes and their labels, aligns them affinely, registers them, warps image and
labels, takes the mean Dice of all labels and writes everything. Pairs are done in turns, one job
after the other, and jobs are compared within the same pair and turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bundles import add_model_option, named_bundles
from charts import stages_of, stages_picture
from colin import SIDE_MM, write_colin_pair
from evaluation import load_pair, mean_dice
from isolated import empty_cache
from jobs import FIELD, JOBS, YARDSTICKS, Job, Task, jobs_named, packages_of
from pairs import labelled_pairs
from paramorph_rt.errors import exit_code
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.transforms.itk import read_displacement
from record import weights_sha256, write_page
from rows import Rows
from tables import failures, markdown_table, measured, origin

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

Row = dict[str, Any]


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
        told = row["dice"]
        return row | {"error": f"told a Dice of {told:.3f}, its field gives {judged:.3f}"}
    return row | {"dice": judged}


def summarise(rows: Iterable[Row]) -> list[Row]:
    """A row per job: medians of all it did, and its time beside that of each yardstick.

    How many times faster is the median over the same pairs and turns.
    """
    done = [row for row in rows if "error" not in row]
    summary = []
    for title in dict.fromkeys(row["job"] for row in done):
        mine = [row for row in done if row["job"] == title]
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


def page(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    rows = summarise(result["rows"])
    return (
        f"# {name}\n\nWritten by `benchmarks/end_to_end.py` from `{name}.json`: {origin(result)}; "
        f"{result['threads']} threads, pairs {', '.join(result['pairs'])}.\n\n"
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
        + f"\n![Seconds of each stage]({name}.svg)\n"
    )


@empty_cache()
def run(args: argparse.Namespace) -> None:
    """Warm up, measure; write the JSON, the table and the picture."""
    bundles = named_bundles(args.model)
    jobs = jobs_named(args.methods, bundles)
    with TemporaryDirectory() as name:
        folder = Path(name)
        small = write_colin_pair(_made(folder / "small"), WARM_UP_SIZE)
        for job in jobs:  # so that packages are in memory and kernels compiled
            measure(job, *small, args.threads, args.timeout)
        if args.folder is None:
            pairs = [write_colin_pair(_made(folder / "colin"), args.size)]
        else:
            pairs = labelled_pairs(args.folder)[: args.pairs]
        content = {
            "threads": args.threads,
            "load_average": os.getloadavg(),
            "models": {label: weights_sha256(bundle) for label, bundle in bundles.items()},
            "pairs": [f"{moving.name} → {fixed.name}" for moving, fixed in pairs],
        }
        rows = Rows(args.name, content, packages_of(jobs))
        for turn in range(args.runs):
            for pair in pairs:
                for job in jobs:
                    rows.note({"turn": turn, **measure(job, *pair, args.threads, args.timeout)})
    result = rows.write(summary=summarise(rows))
    stages_picture(result["summary"], rows.path.with_suffix(".svg"))
    write_page(rows.path, page(result, rows.path.stem))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, help="NAME_*.nii.gz with NAME_labels.nii.gz (default: Colin27)")
    add("--pairs", type=int, default=4, help="of the folder, at most (default: %(default)s)")
    add("--size", type=int, default=SIDE_MM, help="of Colin27's cube (default: %(default)s)")
    add("--runs", type=int, default=1, help="turns over all pairs (default: %(default)s)")
    add_model_option(parser)
    add("--methods", default=DEFAULT_METHODS, help=f"of {', '.join(JOBS)} (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, default=cores, help="of every job (default: all cores)")
    add("--timeout", type=float, default=1800, metavar="S", help="of one job on one pair")
    add("--name", default="end-to-end", help="of the result files (default: %(default)s)")
    args = parser.parse_args(argv)
    return exit_code("end_to_end.py", lambda: run(args))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())

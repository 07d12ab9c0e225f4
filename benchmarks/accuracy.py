"""Whole registrations of labelled volumes by several methods: accuracy, regularity, time, memory.

Every method is a job from files to files (jobs.py) in its own process, on the same threads, and
hands over a complete displacement field on the fixed image's own grid; all fields are then judged
by the same code. Its own warp of the labels has to agree with its field.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bundles import add_model_option, named_bundles
from evaluation import LabelledPair, errors_mm, evaluate, load_pair, mean_dice
from jobs import (
    FIELD,
    JOBS,
    WARPED_LABELS,
    YARDSTICKS,
    Job,
    Task,
    jobs_named,
    of_network,
    of_registration,
    packages_of,
)
from pairs import BenchmarkError, labelled_pairs
from paramorph_rt.errors import ParamorphError, exit_code
from paramorph_rt.images.volume import load_labels
from paramorph_rt.transforms.itk import read_displacement
from record import weights_sha256, write_page
from report import accuracy_picture, accuracy_table
from rows import Rows
from sets import SETS, Case, PairSet

DEFAULT_METHODS = "nothing,affine,default,no-network,unrefined,thorough,demons,syn,greedy,greedy-sv"
MEANS = (
    *("dice", "hd95_mm", "assd_mm", "ncc", "sd_log_jacobian", "nonpositive_jacobian_percent"),
    *("nondiffeomorphic_volume_percent", "error_mean_mm", "error_p95_mm", "error_max_mm"),
)
MEDIANS = ("seconds", "job_seconds", "network_seconds", "peak_mb")
# A method's own warping of labels and ours may differ by roundings, not by a field misread.
OWN_WARP_TOLERANCE = 0.002

Row = dict[str, Any]


def measure(
    job: Job, case: Case, pair: LabelledPair, threads: int, timeout_s: float, affine: str = "affine"
) -> Row:
    """One method on one pair: its figures, or its `error`."""
    row: Row = {"pair": case.name, "method": job.title}
    with TemporaryDirectory() as name:
        folder = Path(name)
        done = job.run(Task.of(case.moving, case.fixed, folder, affine), threads, timeout_s)
        if "error" in done:
            return row | done
        stages = done["stages"]
        row |= {"seconds": of_registration(stages), "network_seconds": of_network(stages)}
        row |= {"job_seconds": done["seconds"], "peak_mb": done["peak_mb"], "stages": stages}
        try:
            field = read_displacement(folder / FIELD)
            row |= evaluate(field, pair)
        except ParamorphError as err:
            return row | {"error": str(err)}
        row["dice_own_warp"] = mean_dice(
            load_labels(folder / WARPED_LABELS, may_be_empty=True), pair
        )
    if abs(row["dice_own_warp"] - row["dice"]) > OWN_WARP_TOLERANCE:
        return row | {"error": "its own warp of the labels differs: its field was misread"}
    if case.true_field is not None:
        row |= errors_mm(field, read_displacement(case.true_field), pair.fixed)
    return row


def summarise(rows: Iterable[Row]) -> dict[str, Row]:
    """By method: means of what is good or bad, medians of what it costs, over the pairs it did."""
    rows, summary = list(rows), {}
    for title in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == title]
        done = [row for row in mine if "error" not in row]
        summary[title] = {"pairs": len(done), "failed": len(mine) - len(done)}
        for average, names in ((statistics.mean, MEANS), (statistics.median, MEDIANS)):
            for name in names:
                values = [row[name] for row in done if row.get(name) is not None]
                summary[title][name] = average(values) if values else None
    for name, peer in YARDSTICKS.items():
        theirs = summary.get(peer, {}).get("seconds")
        for entry in summary.values():
            known = theirs is not None and entry["seconds"] is not None
            entry[f"seconds_over_{name}"] = entry["seconds"] / theirs if known else None
    return summary


def measure_set(args: argparse.Namespace, name: str, chosen: PairSet | None, made: Path) -> None:
    """Every method on every pair of one set; the JSON, the page and the plot.

    Args:
        args: Of the command line.
        name: Of the set, or of the result of a folder.
        chosen: The set; None is the folder itself.
        made: For what the set makes.
    """
    bundles = named_bundles(args.model)
    jobs = jobs_named(args.methods, bundles)
    if chosen is None:
        cases = [Case(*pair) for pair in labelled_pairs(args.folder, args.pairs)]
    else:
        cases = chosen.cases(args.folder, made)
    affine = args.affine or (chosen.affine if chosen else "affine")
    content = {
        "set": chosen.title if chosen else None,
        "affine": affine,
        "threads": args.threads,
        "pairs": len(cases[: args.first]),
        "models": {label: weights_sha256(bundle) for label, bundle in bundles.items()},
    }
    rows = Rows(f"accuracy-{name}", content, packages_of(jobs), args.resume)
    for case in cases[: args.first]:
        asked = [job for job in jobs if rows.without(pair=case.name, method=job.title)]
        pair = load_pair(case.moving, case.fixed) if asked else None
        for job in asked:
            rows.note(measure(job, case, pair, args.threads, args.timeout, affine))
    result = rows.write(summary=summarise(rows))
    accuracy_picture(result, rows.path.with_suffix(".svg"))
    write_page(rows.path, accuracy_table(result, rows.path.stem))


def run(args: argparse.Namespace) -> None:
    """Measure each set, or the folder."""
    if unknown := [name for name in args.set or () if name not in SETS]:
        raise BenchmarkError(
            f"--set: expected some of {', '.join(SETS)}, got {unknown[0]}; correct the option."
        )
    if not args.set:
        chosen: dict[str, PairSet | None] = {args.name or _plain_name(args.folder): None}
    else:
        chosen = {name: SETS[name] for name in args.set}
    for name, pair_set in chosen.items():
        with TemporaryDirectory() as made:
            measure_set(args, name, pair_set, Path(made))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "folder",
        type=Path,
        help="NAME_*.nii.gz with NAME_labels.nii.gz; with --set, the folder of all sets' folders",
    )
    add("--set", action="append", metavar="NAME", help=f"{', '.join(SETS)}; may be repeated")
    add(
        "--pairs", type=Path, metavar="CSV", help="columns moving,fixed (default: each to the next)"
    )
    add("--first", type=int, metavar="N", help="pairs of each set alone (default: all)")
    add("--methods", default=DEFAULT_METHODS, help=f"of {', '.join(JOBS)} (default: %(default)s)")
    add("--affine", choices=("affine", "rigid"), help="what comes first (default: the set's)")
    add_model_option(parser)
    add("--name", help="of a folder's result files (default: the folder's)")
    add("--resume", action="store_true", help="measure only what the result files lack")
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, default=cores, help="of every method (default: all cores)")
    add("--timeout", type=float, default=3600, metavar="S", help="of one method on one pair")
    args = parser.parse_args(argv)
    return exit_code("accuracy.py", lambda: run(args))


def _plain_name(folder: Path) -> str:
    folder = folder.resolve()
    return f"{folder.parent.name}-{folder.name}".replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())

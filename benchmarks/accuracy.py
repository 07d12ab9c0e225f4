"""Whole registrations of labelled volumes by several methods: accuracy, regularity, time, memory.

Every method is a job from files to files (jobs.py) in its own process, on the same threads, and
hands over a complete displacement field on the fixed image's own grid; all fields are then judged
by the same code. Its own warp of the labels has to agree with its field.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmark import FIRST, LABELLED, MODELS, RESUME, THREADS, Benchmark, option
from bundles import named_bundles
from charts import accuracy_plot
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
from pairs import Case, LabelledPair, errors_mm, evaluate, labelled_pairs, mean_dice
from paramorph_rt.errors import ParamorphError
from paramorph_rt.images.volume import load_labels
from paramorph_rt.transforms.itk import read_displacement
from record import Result, Row, Rows, check_known, weights_sha256
from sets import FIELD_MEAN_MM, FIELD_SIGMA_MM, SETS, PairSet
from tables import REGULARITY, average, failures, grouped, markdown_table, measured

DEFAULT_METHODS = "nothing,affine,default,no-network,unrefined,thorough,demons,syn,greedy,greedy-sv"
MEDIANS = ("seconds", "job_seconds", "network_seconds", "peak_mb")
# A method's own warping of labels and ours may differ by roundings, not by a field misread.
OWN_WARP_TOLERANCE = 0.002
COLUMNS = (
    ("method", "method", ""),
    ("Dice", "dice", ".3f"),
    ("HD95, mm", "hd95_mm", ".2f"),
    ("ASSD, mm", "assd_mm", ".2f"),
    ("mean error, mm", "error_mean_mm", ".2f"),
    ("95th percentile", "error_p95_mm", ".2f"),
    ("largest", "error_max_mm", ".2f"),
    *REGULARITY,
    ("seconds", "seconds", ".1f"),
    ("of these network", "network_seconds", ".1f"),
    ("time / greedy", "seconds_over_greedy", ".2g"),
    ("time / SyN", "seconds_over_syn", ".2g"),
    ("peak MB", "peak_mb", ".0f"),
)
MEANS = ("ncc", *(key for _, key, _ in COLUMNS[1:10]))
#: The pairs of the folder itself, where no set is named.
FOLDER = PairSet("Labelled volumes", "", lambda folder, _made: labelled_pairs(folder))
KNOWN_FIELD = (
    f"The fixed image is the moving one, deformed by smooth noise (Gaussian of {FIELD_SIGMA_MM:g} "
    f"mm, vectors of {FIELD_MEAN_MM:g} mm on average) and an affine, with noise in the "
    "intensities. Errors are distances from where the known field leads, over the voxels of the "
    "brain.\n\n"
)


def measure(
    job: Job, case: Case, pair: LabelledPair, threads: int, timeout_s: float, affine: str = "affine"
) -> Row:
    """One method on one pair: its figures, or its `error`."""
    row: Row = {"pair": case.name, "method": job.title}
    with TemporaryDirectory() as name:
        folder = Path(name)
        done = job.run(Task.of(case, folder, affine), threads, timeout_s)
        if "error" in done:
            return row | done
        stages = done["stages"]
        row |= {"seconds": of_registration(stages), "network_seconds": of_network(stages)}
        row |= {"job_seconds": done.pop("seconds"), **done}
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
    summary: dict[str, Row] = {}
    for (title,), mine in grouped(rows, "method").items():
        done = [row for row in mine if "error" not in row]
        summary[title] = {"pairs": len(done), "failed": len(mine) - len(done)}
        summary[title] |= {key: average(done, key) for key in MEANS}
        summary[title] |= {key: average(done, key, statistics.median) for key in MEDIANS}
    for name, peer in YARDSTICKS.items():
        theirs = summary.get(peer, {}).get("seconds")
        for entry in summary.values():
            known = theirs is not None and entry["seconds"] is not None
            entry[f"seconds_over_{name}"] = entry["seconds"] / theirs if known else None
    return summary


def measure_set(args: argparse.Namespace, name: str, chosen: PairSet, scratch: Path) -> Path:
    """Every method on every pair of one set.

    Args:
        args: Of the command line.
        name: Of the set, or of the result of a folder.
        chosen: The set.
        scratch: For the images that the set makes.
    """
    bundles = named_bundles(args.model)
    jobs = jobs_named(args.methods, bundles)
    cases = chosen.cases(args.folder, scratch)[: args.first]
    affine = args.affine or chosen.affine
    content = {
        "set": chosen.title,
        "affine": affine,
        "threads": args.threads,
        "pairs": len(cases),
        "models": {label: weights_sha256(bundle) for label, bundle in bundles.items()},
    }
    rows = Rows(f"accuracy-{name}", content, packages_of(jobs), args.resume)
    for case in cases:
        missing = [job for job in jobs if rows.without(pair=case.name, method=job.title)]
        pair = case.load() if missing else None
        for job in missing:
            rows.note(measure(job, case, pair, args.threads, args.timeout, affine))
    return rows.write(summary=summarise(rows))


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Measure each set, or the folder."""
    check_known("--set", args.set or (), SETS)
    folder = args.folder.resolve()
    name = args.name or f"{folder.parent.name}-{folder.name}".replace("_", "-")
    chosen = {name: SETS[name] for name in args.set} if args.set else {name: FOLDER}
    for each, pair_set in chosen.items():
        with TemporaryDirectory() as scratch:
            yield measure_set(args, each, pair_set, Path(scratch))


def body(result: Result) -> str:
    """The text of a result's page."""
    summary = [{"method": title, **entry} for title, entry in result["summary"].items()]
    columns = measured(COLUMNS, summary)
    known = any(key == "error_mean_mm" for _, key, _ in columns)
    return (
        f"{result.get('set') or 'Labelled volumes'}: {result['pairs']} pairs.\n\n"
        "Means over the pairs; seconds, their ratio and memory are of medians. Seconds are those "
        "of the registration alone, affine included, without reading files and loading models "
        "(greedy's include its own files, between its steps); memory is the whole process's, "
        "packages and images included. Folds are voxels whose Jacobian determinant is not positive "
        "by central differences; the non-diffeomorphic volume sees between voxels, too (Liu et al. "
        "2024).\n\n"
        + (KNOWN_FIELD if known else "")
        + markdown_table(summary, columns)
        + failures(result["rows"], "method", "pair")
    )


def headline(result: Result) -> dict[str, float]:
    """Dice and seconds of our methods."""
    return {
        f"{quantity}, {title}": entry[key]
        for quantity, key in (("mean Dice", "dice"), ("seconds of a registration", "seconds"))
        for title, entry in result["summary"].items()
        if title.startswith("ParaMorph") and entry[key] is not None
    }


OPTIONS = (
    option("folder", type=Path, help=f"{LABELLED}; with --set, the folder of all sets"),
    option("--set", action="append", metavar="NAME", help=f"{', '.join(SETS)}; repeatable"),
    FIRST,
    option("--methods", default=DEFAULT_METHODS, help=f"of {', '.join(JOBS)}"),
    option("--affine", choices=("affine", "rigid"), help="before it (default: the set's)"),
    MODELS,
    option("--name", help="of a folder's result files (default: the folder's)"),
    RESUME,
    THREADS,
    option("--timeout", type=float, default=3600, metavar="S", help="of a method on a pair"),
)
BENCHMARK = Benchmark(run, body, OPTIONS, plot=accuracy_plot, headline=headline)

if __name__ == "__main__":
    BENCHMARK.exit()

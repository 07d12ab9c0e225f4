"""The whole job as a user runs it, beside peers who do the same, each in its own process.

Each job reads two volumes and their labels, aligns them affinely, registers them, warps image and
labels, takes the mean Dice of all labels and writes everything. Pairs are done in turns, one job
after the other; a peer's seconds over ours are those of the same pair in the same turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bundles import add_model_option, named_bundles
from charts import stages_of, stages_picture
from colin import SIDE_MM, write_colin_pair
from evaluation import load_pair, mean_dice
from isolated import empty_cache
from jobs import PEERS, Files, Job
from pairs import BenchmarkError, labelled_pairs
from paramorph_rt.errors import exit_code
from paramorph_rt.transforms.itk import read_displacement
from paramorph_rt.warp import warp_volume
from record import weights_sha256, write_page, write_result
from tables import markdown_table, origin

if TYPE_CHECKING:
    from paramorph.data import SubjectFiles

DEFAULT_ENGINES = "openvino:bf16,openvino:fp32,onnxruntime:fp32"
TITLES = {"syn": "ANTs SyN", "elastix": "elastix B-spline"}
PACKAGES = ("openvino", "antspyx", "itk-elastix")
WARM_UP_SIZE = 48
# A peer's mean may count another label than ours; a field misread changes all of them.
DICE_TOLERANCE = 0.01
AVERAGES = ("seconds", "cpu_seconds", "peak_mb", "dice")
COLUMNS = (
    ("job", "job", ""),
    ("seconds", "seconds", ".1f"),
    ("CPU, s", "cpu_seconds", ".1f"),
    ("of {}'s time", "share", ".3f"),
    ("of its CPU", "cpu_share", ".3f"),
    ("times faster", "times_faster", ".1f"),
    ("peak MB", "peak_mb", ".0f"),
    ("Dice", "dice", ".3f"),
    ("n", "n", "d"),
)

Row = dict[str, Any]


def jobs(peers: str, engines: str, models: Sequence[str] | None) -> tuple[list[Job], Row]:
    """All that was asked for, peers last, and where our models come from.

    Raises:
        BenchmarkError: A peer that is unknown.
        BundleError: A model that cannot be loaded.
    """
    asked = [peer for peer in peers.split(",") if peer]
    if unknown := [peer for peer in asked if peer not in PEERS]:
        raise BenchmarkError(
            f"--peers: expected some of {', '.join(PEERS)}, got {unknown[0]}; correct it."
        )
    bundles = named_bundles(models)
    ours = [
        Job(f"ParaMorph {label}, {engine}", model=str(bundle.folder), engine=engine)
        for label, bundle in bundles.items()
        for engine in engines.split(",")
    ]
    return [*ours, *(Job(TITLES[peer], peer) for peer in asked)], {
        label: weights_sha256(bundle) for label, bundle in bundles.items()
    }


def measure(
    job: Job, moving: SubjectFiles, fixed: SubjectFiles, threads: int, timeout_s: float
) -> Row:
    """One job on one pair: its figures, or its `error`; the field it wrote is judged by us, too."""
    row = {"job": job.title, "ours": job.peer is None, "pair": f"{moving.name} → {fixed.name}"}
    with TemporaryDirectory() as name:
        out = Path(name)
        row |= job.run(Files.of(moving, fixed, out), threads, timeout_s)
        if "error" in row:
            return row
        pair = load_pair(moving, fixed)
        field = read_displacement(out / "displacement.nii.gz")
        judged = mean_dice(warp_volume(pair.moving_labels, field, "nearest"), pair)
    if not abs(judged - row["dice"]) <= DICE_TOLERANCE:  # nor NaN
        told = row["dice"]
        return row | {"error": f"told a Dice of {told:.3f}, its field gives {judged:.3f}"}
    return row | {"dice": judged}


def summarise(rows: Iterable[Row]) -> list[Row]:
    """A row per job: medians of all it did, and of its share of the last peer's time."""
    rows = list(rows)
    done = [row for row in rows if "error" not in row]
    peer = next((row["job"] for row in reversed(rows) if not row["ours"]), None)
    theirs = {(row["pair"], row["turn"]): row for row in done if row["job"] == peer}
    summary = []
    for title in dict.fromkeys(row["job"] for row in rows):
        mine = [row for row in done if row["job"] == title]
        entry: Row = {"job": title, "n": len(mine), "peer": peer}
        if mine:
            entry["ours"] = mine[0]["ours"]
            entry |= {key: statistics.median(row[key] for row in mine) for key in AVERAGES}
            entry["stages"] = {
                stage: statistics.median(row["stages"].get(stage, 0.0) for row in mine)
                for stage in dict.fromkeys(stage for row in mine for stage in row["stages"])
            }
            beside = [(row, theirs.get((row["pair"], row["turn"]))) for row in mine]
            for share, key in (("share", "seconds"), ("cpu_share", "cpu_seconds")):
                if shares := [row[key] / other[key] for row, other in beside if other]:
                    entry[share] = statistics.median(shares)
            if "share" in entry:
                entry["times_faster"] = 1 / entry["share"]
        summary.append(entry)
    return summary


def page(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    rows = [row for row in result["summary"] if row["n"]]
    peer = result["summary"][0]["peer"] or "a peer"
    columns = [(title.format(peer), key, spec) for title, key, spec in COLUMNS]
    failed = dict.fromkeys(
        (r["job"], r["pair"], r["error"]) for r in result["rows"] if "error" in r
    )
    return (
        f"# {name}\n\nWritten by `benchmarks/end_to_end.py` from `{name}.json`: {origin(result)}; "
        f"{result['threads']} threads, pairs {', '.join(result['pairs'])}.\n\n"
        "Medians, from the start of a process to its end: read two volumes with their labels, "
        "align, register, warp both, Dice of all labels, write everything. Shares are of the same "
        "pair and turn.\n\n"
        + markdown_table(rows, columns)
        + "\nSeconds of each stage; start-up is all else: interpreter, imports, reading the "
        "bundle, and the end.\n\n"
        + markdown_table(
            [{"job": row["job"], **row["stages"]} for row in rows],
            [("job", "job", ""), *((stage, stage, ".2f") for stage in stages_of(rows))],
        )
        + ("\nFailed:\n\n" + "".join(f"- {j}, {p}: {e}\n" for j, p, e in failed) if failed else "")
        + f"\n![Seconds of each stage]({name}.svg)\n"
    )


@empty_cache()
def run(args: argparse.Namespace) -> None:
    """Warm up, measure; write the JSON, the table and the picture."""
    asked, models = jobs(args.peers, args.engines, args.model)
    with TemporaryDirectory() as name:
        folder = Path(name)
        small = write_colin_pair(_made(folder / "small"), WARM_UP_SIZE)
        for job in asked:  # so that packages are in memory and kernels compiled
            measure(job, *small, args.threads, args.timeout)
        if args.folder is None:
            pairs = [write_colin_pair(_made(folder / "colin"), args.size)]
        else:
            pairs = labelled_pairs(args.folder)[: args.pairs]
        rows = []
        for turn in range(args.runs):
            for pair in pairs:
                for job in asked:
                    rows.append({"turn": turn, **measure(job, *pair, args.threads, args.timeout)})
                    print(json.dumps(rows[-1], ensure_ascii=False), file=sys.stderr, flush=True)
    path = write_result(
        args.name,
        {
            "threads": args.threads,
            "load_average": os.getloadavg(),
            "models": models,
            "pairs": list(dict.fromkeys(row["pair"] for row in rows)),
            "summary": summarise(rows),
            "rows": rows,
        },
        packages=PACKAGES,
    )
    result = json.loads(path.read_text(encoding="utf-8"))
    stages_picture([row for row in result["summary"] if row["n"]], path.with_suffix(".svg"))
    write_page(path, page(result, path.stem))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, help="NAME_*.nii.gz with NAME_labels.nii.gz (default: Colin27)")
    add("--pairs", type=int, default=4, help="of the folder, at most (default: %(default)s)")
    add("--size", type=int, default=SIDE_MM, help="of Colin27's cube (default: %(default)s)")
    add("--runs", type=int, default=1, help="turns over all pairs (default: %(default)s)")
    add_model_option(parser)
    add("--engines", default=DEFAULT_ENGINES, help="backend:precision,… (default: %(default)s)")
    add("--peers", default="syn", help=f"some of {', '.join(PEERS)} (default: %(default)s)")
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

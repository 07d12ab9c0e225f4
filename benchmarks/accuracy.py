"""Whole registrations of labelled volumes by several methods, side by side: overlap, folds, time.

Every method runs in its own process, on the same threads, and hands over a complete displacement
field on the fixed image's own grid; all fields are then judged by the same code.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evaluation import LabelledPair, evaluate, load_pair, mean_dice
from isolated import run_isolated
from methods import ENGINES, FIELD, METHODS, OWN_LABELS, REPORT, Task
from pairs import BenchmarkError, add_pair_options, labelled_pairs
from paramorph.data import SubjectFiles
from paramorph_rt.bundle import default_bundle_path, load_bundle
from paramorph_rt.errors import MissingDependencyError, ParamorphError, exit_code
from paramorph_rt.transforms.itk import read_displacement
from paramorph_rt.volume import load_labels
from record import weights_sha256, write_page, write_result
from report import accuracy_picture, accuracy_table

TITLES = {
    "nothing": "no registration",
    "affine": "affine",
    "demons": "diffeomorphic demons",
    "elastix": "elastix B-spline",
    "syn": "ANTs SyN",
}
PEERS = {"syn": "antspyx", "elastix": "itk-elastix"}  # what they need besides our own packages
MEANS = ("dice", "hd95_mm", "assd_mm", "ncc", "nonpositive_jacobian_percent", "sd_log_jacobian")
MEDIANS = ("seconds", "network_seconds", "load_seconds", "peak_mb")
# A method's own warping of labels and ours may differ by roundings, not by a field misread.
OWN_WARP_TOLERANCE = 0.002

Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A method as it is asked for.

    Attributes:
        title: What tables call it.
        method: A key of `METHODS`.
        model: Bundle, for ours.
        engine: A key of `ENGINES`, for ours.
    """

    title: str
    method: str
    model: str | None = None
    engine: str | None = None


def contenders(
    methods: Iterable[str], engines: Iterable[str], models: Iterable[str]
) -> list[Contender]:
    """All that was asked for, ours once per model and engine.

    Args:
        methods: Keys of `METHODS`.
        engines: Keys of `ENGINES`.
        models: `BUNDLE` or `BUNDLE:LABEL`; the label goes into tables in place of the model's name.

    Raises:
        BenchmarkError: A method or engine that is unknown, or two models of one label.
        MissingDependencyError: A peer whose package is not installed.
        BundleError: A model that cannot be loaded.
    """
    found = []
    for method in methods:
        _check_known("--methods", method, METHODS)
        if method in PEERS:
            _check_installed(method, PEERS[method])
        if method != "paramorph":
            found.append(Contender(TITLES[method], method))
            continue
        for model in models:
            path, label = _path_and_label(model)
            for engine in engines:
                _check_known("--ours", engine, ENGINES)
                title = f"ParaMorph {label}, {engine}"
                found.append(Contender(title, method, str(path), engine))
    titles = [contender.title for contender in found]
    if twice := next((title for title in titles if titles.count(title) > 1), None):
        raise BenchmarkError(
            f"{twice}: expected one of that name, got {titles.count(twice)}; tell them apart by "
            "--model BUNDLE:LABEL."
        )
    return found


def measure(
    contender: Contender,
    moving: SubjectFiles,
    fixed: SubjectFiles,
    pair: LabelledPair,
    threads: int,
    timeout_s: float,
) -> Row:
    """One method on one pair: its figures, or its `error`."""
    row = {"pair": f"{moving.name} → {fixed.name}", "method": contender.title}
    with TemporaryDirectory() as name:
        folder = Path(name)
        paths = (str(p.resolve()) for p in (moving.image, fixed.image, moving.labels))
        task = Task(contender.method, *paths, name, threads, contender.model, contender.engine)
        (folder / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
        script = Path(__file__).with_name("methods.py")
        command = [sys.executable, str(script), str(folder / "task.json")]
        if error := run_isolated(command, threads, timeout_s):
            return row | {"error": error}
        row |= json.loads((folder / REPORT).read_text(encoding="utf-8"))
        try:
            row |= evaluate(read_displacement(folder / FIELD), pair)
        except ParamorphError as err:
            return row | {"error": str(err)}
        if (folder / OWN_LABELS).exists():
            row["dice_own_warp"] = mean_dice(load_labels(folder / OWN_LABELS), pair)
            if abs(row["dice_own_warp"] - row["dice"]) > OWN_WARP_TOLERANCE:
                return row | {"error": "its own warp of the labels differs: its field was misread"}
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
    syn = summary.get(TITLES["syn"], {}).get("seconds")
    for entry in summary.values():
        known = syn is not None and entry["seconds"] is not None
        entry["seconds_over_syn"] = entry["seconds"] / syn if known else None
    return summary


def run(args: argparse.Namespace) -> None:
    """Measure every method on every pair; write the JSON, the table and the picture."""
    engines = args.ours.split(",")
    asked = contenders(args.methods.split(","), engines, args.model or [str(default_bundle_path())])
    pairs = labelled_pairs(args.folder, args.pairs)
    rows = []
    for moving, fixed in pairs:
        pair = load_pair(moving, fixed)
        for contender in asked:
            rows.append(measure(contender, moving, fixed, pair, args.threads, args.timeout))
            print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
    models = {c.title: _provenance(c.model) for c in asked if c.model}
    path = write_result(
        f"accuracy-{args.name or _plain_name(args.folder)}",
        {
            "threads": args.threads,
            "pairs": len(pairs),
            "models": models,
            "summary": summarise(rows),
            "rows": rows,
        },
        packages=[PEERS[c.method] for c in asked if c.method in PEERS],
    )
    table = accuracy_table(json.loads(path.read_text(encoding="utf-8")), path.stem)
    accuracy_picture(rows, path.with_suffix(".svg"))
    write_page(path, table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_pair_options(parser)
    add("--methods", default=",".join(METHODS), help="which of them (default: %(default)s)")
    add("--ours", default="onnxruntime:fp32", help=f"backend:precision,… of {', '.join(ENGINES)}")
    add("--model", action="append", metavar="BUNDLE[:LABEL]", help="(default: the shipped one)")
    add("--name", help="of the result files (default: from the folder)")
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, default=cores, help="of every method (default: all cores)")
    add("--timeout", type=float, default=3600, metavar="S", help="of one method on one pair")
    args = parser.parse_args()
    return exit_code("accuracy.py", lambda: run(args))


def _path_and_label(model: str) -> tuple[Path, str]:
    path, colon, label = model.rpartition(":")
    if Path(model).is_dir() or not colon:
        path, label = model, ""
    bundle = load_bundle(path)
    return bundle.folder.resolve(), label or bundle.name


def _check_known(option: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise BenchmarkError(
            f"{option}: expected some of {', '.join(known)}, got {name}; correct the option."
        )


def _check_installed(method: str, package: str) -> None:
    try:
        version(package)
    except PackageNotFoundError as err:
        raise MissingDependencyError(
            f"{method}: expected the package {package}, found none; pip install -e "
            "'.[benchmarks]', or leave it out of --methods."
        ) from err


def _provenance(model: str) -> dict[str, str | None]:
    bundle = load_bundle(model)
    return {"name": bundle.name, "weights_sha256": weights_sha256(bundle)}


def _plain_name(folder: Path) -> str:
    folder = folder.resolve()
    return f"{folder.parent.name}-{folder.name}".replace("_", "-")


if __name__ == "__main__":
    sys.exit(main())

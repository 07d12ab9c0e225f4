"""The shipped weights under trouble: moved, scaled, coarse, noisy and strangely stored images.

Pairs of labelled volumes are registered as they are, then with each of `TROUBLES` in the moving
image, by each of `SETTINGS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import FIRST, FOLDER, MODEL, RESUME, Benchmark, option
from pairs import LabelledPair, labelled_pairs
from paramorph_rt import Registration
from paramorph_rt.bundle import NO_MODEL
from paramorph_rt.errors import ParamorphError
from paramorph_rt.geometry.field import DisplacementField
from record import Result, Row, Rows, weights_sha256
from tables import REGULARITY, average, failures, grouped, markdown_table, measured
from troubles import TROUBLES, same_places

# By what a page calls them: whether a network is used, and further arguments.
SETTINGS: dict[str, tuple[bool, dict[str, Any]]] = {
    "refined": (True, {}),
    "not refined": (True, {"refine": 0}),
    "no network, refined": (False, {}),
}
AS_THEY_ARE = "as they are"
COLUMNS = (
    ("case", "case", ""),
    ("pairs", "pairs", "d"),
    ("Dice before", "dice_before", ".3f"),
    ("affine", "dice_affine", ".3f"),
    ("after", "dice_after", ".3f"),
    ("worst pair", "dice_after_worst", ".3f"),
    ("NCC affine", "ncc_affine", ".3f"),
    ("after", "ncc_after", ".3f"),
    *REGULARITY,
    ("field differs, mm", "field_difference_mm", ".3f"),
)

Register = Callable[..., Any]


def measure(
    register: Register, case: str, pair: LabelledPair, usual: DisplacementField | None = None
) -> tuple[Row, DisplacementField | None]:
    """Register one pair.

    Args:
        register: The model, with its setting.
        case: What the table calls it.
        pair: Images and labels.
        usual: The field without the trouble, to be compared with.

    Returns:
        Figures and the field, or the `error` that refused the pair and None.
    """
    row: Row = {"case": case, "pair": f"{pair.moving.name} → {pair.fixed.name}"}
    try:
        result = register(*vars(pair).values(), surfaces=False)
    except ParamorphError as err:
        return row | {"error": str(err)}, None
    metrics, field = result.metrics, result.displacement
    row |= {f"dice_{stage}": entry["mean"] for stage, entry in metrics["dice"].items()}
    row |= {f"ncc_{stage}": value for stage, value in metrics["ncc"].items()}
    row |= {key: metrics[key] for _, key, _ in REGULARITY}
    if usual is not None:
        distances_mm = np.linalg.norm(field.vectors_mm - usual.vectors_mm, axis=-1)
        row["field_difference_mm"] = float(distances_mm.max())
    return row, field


def troubled(register: Register, pair: LabelledPair) -> Iterator[Row]:
    """One pair as it is, then with each trouble in its moving image."""
    row, usual = measure(register, AS_THEY_ARE, pair)
    yield row
    for case, trouble in TROUBLES.items():
        moving, labels = trouble(pair.moving, pair.moving_labels)
        changed = LabelledPair(moving, pair.fixed, labels, pair.fixed_labels)
        stayed = same_places(moving.grid, pair.moving.grid)
        yield measure(register, case, changed, usual if stayed else None)[0]


def summarise(rows: Iterable[Row]) -> list[Row]:
    """One row per case: means over its pairs; the worst Dice and the largest field difference."""
    summary = []
    for (case,), every in grouped(rows, "case").items():
        done = [row for row in every if "error" not in row]
        entry: Row = {key: average(done, key) for _, key, spec in COLUMNS if spec.endswith("f")}
        entry |= {"case": case, "pairs": len(done)}
        entry["field_difference_mm"] = average(done, "field_difference_mm", max)
        entry["dice_after_worst"] = average(done, "dice_after", min)
        summary.append(entry)
    return summary


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Measure every case in every setting."""
    pairs = labelled_pairs(args.folder, args.first)
    with_network = Registration(args.model, args.threads)
    without = Registration(NO_MODEL, args.threads)
    bundle = with_network.bundle
    content = {"model": bundle.name, "weights_sha256": weights_sha256(bundle)}
    content |= {"models": {bundle.name: weights_sha256(bundle)}, "threads": args.threads}
    rows = Rows(f"robustness-{args.name or bundle.name}", content, resume=args.resume)
    for setting, (network, options) in SETTINGS.items():
        register = partial(with_network if network else without, **options)
        for case in pairs:
            of = {"setting": setting, "of": case.name}
            if rows.without(**of):
                # All cases of a pair at once: a run that goes on does it whole or not at all.
                for row in list(troubled(register, case.load())):
                    rows.note(of | row)
    yield rows.write()


def body(result: Result) -> str:
    """The text of a result's page."""
    rows = result["rows"]
    text = (
        f"{result['model']}; means over the pairs. The trouble is in the moving image; where it is "
        "moved or resampled its labels are too, by nearest neighbour, so a part of the change in "
        "Dice is theirs. The last column is the largest difference, over all voxels, from the "
        "field of the same pair as it is, where the moving voxels stay in their places.\n"
    )
    for (setting,), each in grouped(rows, "setting").items():
        summary = summarise(each)
        text += (f"\n## {setting.capitalize()}\n" if setting else "") + "\n"
        text += markdown_table(summary, measured(COLUMNS, summary))
    return text + failures(rows, "case", "pair")


OPTIONS = (
    FOLDER,
    FIRST,
    MODEL,
    option("--name", help="of the result files (default: the model's)"),
    RESUME,
    option("--threads", type=int, help="default: all cores"),
)
BENCHMARK = Benchmark(run, body, OPTIONS)

if __name__ == "__main__":
    BENCHMARK.exit()

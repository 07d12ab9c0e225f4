"""What brain masks do for heads with skull, whose model was trained on brains alone.

Pairs of whole heads with label maps of their brains are registered as they are, by `--strip`, and
with masks made of the labels. Judged by Dice of the labels, as similarity within masks and without
cannot be compared.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmark import MODEL, THREADS, Benchmark, option
from bundles import single_bundle
from paramorph_rt import Registration, Volume, load_labels, load_volume
from paramorph_rt.metrics.overlap import dice
from record import BenchmarkError, Result, Row, weights_sha256
from tables import average, grouped, markdown_table

KINDS = "none", "--strip", "of the labels"
COLUMNS = (
    ("pair", "pair", ""),
    ("masks", "masks", ""),
    ("Dice before", "before", ".3f"),
    ("affine", "affine", ".3f"),
    ("after", "after", ".3f"),
    ("folds, %", "folded_percent", ".3f"),
    ("spacing growth", "spacing_growth", ".2f"),
    ("Dice of the masks", "mask_dice", ".3f"),
)


def mask_of(labels: Volume) -> Volume:
    """Where there is any label."""
    return replace(labels, data=(labels.data != 0).astype(np.uint8), name=f"mask of {labels.name}")


def measure(register: Registration, moving: str, fixed: str, folder: Path, kind: str) -> Row:
    """Register one head to another, by their names, with masks of one of `KINDS`."""
    names = moving, fixed
    images = [load_volume(folder / f"{name}_t1.nii.gz") for name in names]
    labels = [load_labels(folder / f"{name}_labels.nii.gz") for name in names]
    drawn = dict(zip(("moving_mask", "fixed_mask"), map(mask_of, labels), strict=True))
    options: dict[str, Any] = {"surfaces": False, "strip": kind == "--strip"}
    options |= drawn if kind == "of the labels" else {}
    result = register(*images, *labels, **options)
    metrics = result.metrics
    made = [result.brain_masks[which] for which in ("moving", "fixed") if result.brain_masks]
    return {
        "pair": f"{moving} → {fixed}",
        "masks": kind,
        **{stage: entry["mean"] for stage, entry in metrics["dice"].items()},
        "folded_percent": metrics["nonpositive_jacobian_percent"],
        "spacing_growth": metrics["network_grid"]["spacing_growth"],
        "mask_dice": statistics.mean(map(agreement, made, labels)) if made else None,
    }


def agreement(mask: Volume, labels: Volume) -> float:
    """Dice of a brain mask and a label map, whose gaps and holes, which hold fluid, are filled."""
    image = sitk.GetImageFromArray(mask_of(labels).data)
    closed = sitk.BinaryMorphologicalClosing(image, [round(4 / s) for s in labels.grid.spacing])
    brain = sitk.GetArrayFromImage(sitk.BinaryFillhole(closed))
    return dice(brain, mask.data)[1]


def run(args: argparse.Namespace) -> Row:
    """Measure with masks of every kind; means come last."""
    names = sorted(path.name.removesuffix("_t1.nii.gz") for path in args.dir.glob("*_t1.nii.gz"))
    if len(names) < 2:
        raise BenchmarkError(f"{args.dir}: expected two *_t1.nii.gz or more, got {len(names)}.")
    _, bundle = single_bundle(args.model)
    register = Registration(bundle, args.threads)
    pairs = list(pairwise([*names, names[0]]))
    rows = [measure(register, *pair, args.dir, kind) for kind in KINDS for pair in pairs]
    for (kind,), each in grouped(rows, "masks").items():
        means = {key: average(each, key) for _, key, spec in COLUMNS if spec}
        rows.append({"pair": "mean", "masks": kind, **means})
    return {"weights_sha256": weights_sha256(bundle), "rows": rows}


def body(result: Result) -> str:
    """The text of a result's page."""
    return "Heads with skull.\n\n" + markdown_table(result["rows"], COLUMNS)


DIR = option("dir", type=Path, metavar="DIR", help="NAME_t1.nii.gz with NAME_labels.nii.gz")
BENCHMARK = Benchmark(run, body, (DIR, MODEL, THREADS))

if __name__ == "__main__":
    BENCHMARK.exit()

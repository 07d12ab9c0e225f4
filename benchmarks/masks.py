"""What brain masks do for heads with skull, whose model was trained on brains alone.

Pairs of whole heads with label maps of their brains are registered as they are, by `--strip`, and
with masks made of the labels. Judged by Dice of the labels, as similarity within masks and without
cannot be compared.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import SimpleITK as sitk

from benchmark import FOLDER, MODEL, THREADS, Benchmark
from pairs import LabelledPair, labelled_pairs
from paramorph_rt import Registration, Volume
from paramorph_rt.bundle import bundle_path, load_bundle
from paramorph_rt.metrics.overlap import dice
from record import Row, weights_sha256
from tables import average, grouped, page_of_rows

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


def measure(register: Registration, pair: LabelledPair, kind: str) -> Row:
    """Register one head to another with masks of one of `KINDS`."""
    labels = {"moving": pair.moving_labels, "fixed": pair.fixed_labels}
    options: dict[str, Any] = {"surfaces": False, "strip": kind == "--strip"}
    if kind == "of the labels":
        options |= {f"{which}_mask": mask_of(each) for which, each in labels.items()}
    result = register(*vars(pair).values(), **options)
    metrics = result.metrics
    made = [agreement(mask, labels[which]) for which, mask in result.brain_masks.items()]
    return {
        "masks": kind,
        **{stage: entry["mean"] for stage, entry in metrics["dice"].items()},
        "folded_percent": metrics["nonpositive_jacobian_percent"],
        "spacing_growth": metrics["network_grid"]["spacing_growth"],
        "mask_dice": statistics.mean(made) if made else None,
    }


def agreement(mask: Volume, labels: Volume) -> float:
    """Dice of a brain mask and a label map, whose gaps and holes, which hold fluid, are filled."""
    image = sitk.GetImageFromArray(mask_of(labels).data)
    closed = sitk.BinaryMorphologicalClosing(image, [round(4 / s) for s in labels.grid.spacing])
    brain = sitk.GetArrayFromImage(sitk.BinaryFillhole(closed))
    return dice(brain, mask.data)[1]


def run(args: argparse.Namespace) -> Row:
    """Measure with masks of every kind; means come last."""
    cases = labelled_pairs(args.folder)
    bundle = load_bundle(bundle_path(args.model))
    register = Registration(bundle, args.threads)
    rows = [
        {"pair": case.name} | measure(register, case.load(), kind)
        for kind in KINDS
        for case in cases
    ]
    for (kind,), each in grouped(rows, "masks").items():
        means = {key: average(each, key) for _, key, spec in COLUMNS if spec}
        rows.append({"pair": "mean", "masks": kind, **means})
    return {"weights_sha256": weights_sha256(bundle), "rows": rows}


BENCHMARK = Benchmark(run, page_of_rows("Heads with skull.", COLUMNS), (FOLDER, MODEL, THREADS))

if __name__ == "__main__":
    BENCHMARK.exit()

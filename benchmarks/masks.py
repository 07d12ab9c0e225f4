"""What brain masks do for heads with skull, whose model was trained on brains alone.

Pairs of whole heads with label maps of their brains are registered as they are, and with masks made
of the labels. Judged by Dice of the labels, as similarity within masks and without cannot be
compared.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmark import MODEL, THREADS, Benchmark, option
from bundles import single_bundle
from paramorph_rt import Registration, Volume, load_labels, load_volume
from record import BenchmarkError, Result, Row, weights_sha256
from tables import average, grouped, markdown_table

COLUMNS = (
    ("pair", "pair", ""),
    ("masks", "masks", ""),
    ("Dice before", "before", ".3f"),
    ("affine", "affine", ".3f"),
    ("after", "after", ".3f"),
    ("folds, %", "folded_percent", ".3f"),
    ("spacing growth", "spacing_growth", ".2f"),
)


def mask_of(labels: Volume) -> Volume:
    """Where there is any label."""
    return replace(labels, data=(labels.data != 0).astype(np.uint8), name=f"mask of {labels.name}")


def measure(register: Registration, moving: str, fixed: str, folder: Path, masks: bool) -> Row:
    """Register one head to another, by their names."""
    names = moving, fixed
    images = [load_volume(folder / f"{name}_t1.nii.gz") for name in names]
    labels = [load_labels(folder / f"{name}_labels.nii.gz") for name in names]
    inside = [mask_of(each) if masks else None for each in labels]
    masked = {"moving_mask": inside[0], "fixed_mask": inside[1]}
    metrics = register(*images, *labels, **masked, surfaces=False).metrics
    return {
        "pair": f"{moving} → {fixed}",
        "masks": "of the brains" if masks else "none",
        **{stage: entry["mean"] for stage, entry in metrics["dice"].items()},
        "folded_percent": metrics["nonpositive_jacobian_percent"],
        "spacing_growth": metrics["network_grid"]["spacing_growth"],
    }


def run(args: argparse.Namespace) -> Row:
    """Measure without and with masks; means come last."""
    names = sorted(path.name.removesuffix("_t1.nii.gz") for path in args.dir.glob("*_t1.nii.gz"))
    if len(names) < 2:
        raise BenchmarkError(f"{args.dir}: expected two *_t1.nii.gz or more, got {len(names)}.")
    _, bundle = single_bundle(args.model)
    register = Registration(bundle, args.threads)
    pairs = list(pairwise([*names, names[0]]))
    rows = [measure(register, *pair, args.dir, masks) for masks in (False, True) for pair in pairs]
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

"""What each metric costs on a labelled pair at its own resolution: seconds, and seconds of CPU.

The deformation is the affine alignment; no cost depends on what a field contains.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmark import FOLDER, THREADS, Benchmark, runs
from costs import repeated
from pairs import LabelledPair, labelled_pairs
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.transform import Affine
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.metrics.deformation import digital_diffeomorphism, regularity
from paramorph_rt.metrics.overlap import dice, label_counts, present_labels
from paramorph_rt.metrics.summary import compare_images, compare_labels
from paramorph_rt.metrics.surface import surface_distances
from paramorph_rt.steps.affine import align_affine
from paramorph_rt.system.threads import itk_threads
from record import Row
from tables import page_of_rows

COLUMNS = (
    ("metric", "metric", ""),
    ("seconds", "median_seconds", ".3f"),
    ("CPU, s", "median_cpu_seconds", ".3f"),
)


def measures(pair: LabelledPair) -> tuple[dict[str, Callable[[], Any]], int]:
    """What is timed, by name, and how many labels there are."""
    fixed, spacing = pair.fixed, pair.fixed.grid.spacing
    field = Affine(align_affine(pair.moving, fixed).affine).on(fixed.grid)
    before_labels = resample_to_grid(pair.moving_labels, fixed.grid, interpolation="nearest")
    after = warp_volume(pair.moving, field).data
    after_labels = warp_volume(pair.moving_labels, field, "nearest").data
    union = present_labels(pair.fixed_labels.data) | present_labels(pair.moving_labels.data)

    def surfaces(labels: np.ndarray) -> Callable[[], Any]:
        return lambda: surface_distances(pair.fixed_labels.data, labels, spacing, union)

    stages = {"before": before_labels, "after": after_labels}
    return {
        "surface distances, before": surfaces(before_labels),
        "surface distances, after": surfaces(after_labels),
        "all metrics of labels, before and after": lambda: compare_labels(
            pair.fixed_labels, pair.moving_labels, stages
        ),
        "dice, one stage": lambda: dice(pair.fixed_labels.data, after_labels),
        "volumes, one map": lambda: label_counts(after_labels),
        "NCC, one stage": lambda: compare_images(fixed, {"after": after}, ["ncc"]),
        "MSE, one stage": lambda: compare_images(fixed, {"after": after}, ["mse"]),
        "SSIM, one stage": lambda: compare_images(fixed, {"after": after}, ["ssim"]),
        "all regularity": lambda: regularity(field),
        "digital diffeomorphism alone": lambda: digital_diffeomorphism(field),
    }, len(union)


def run(args: argparse.Namespace) -> Row:
    """Measure the first pair of the folder."""
    pair = labelled_pairs(args.folder, 1)[0].load()
    with itk_threads(args.threads):
        work, labels = measures(pair)
        rows = [{"metric": name, **repeated(call, args.runs)} for name, call in work.items()]
    return {
        "threads": args.threads,
        "shape": pair.fixed.grid.shape,
        "spacing_mm": pair.fixed.grid.spacing.round(6).tolist(),
        "labels": labels,
        "rows": rows,
    }


TEXT = "{shape[0]} × {shape[1]} × {shape[2]} voxels, {labels} labels; medians."
OPTIONS = (FOLDER, runs(5, "of each"), THREADS)
BENCHMARK = Benchmark(run, page_of_rows(TEXT, COLUMNS), OPTIONS)

if __name__ == "__main__":
    BENCHMARK.exit()

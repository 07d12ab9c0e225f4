"""Inverses of a real displacement field: ours and ITK's, by time and by what there and back costs.

ITK's filters invert on the field's own grid and want no affine, so they are given the field without
it, and the affine's inverse is put before theirs. All are judged by ITK's own composition.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from benchmark import MODEL, THREADS, Benchmark, option
from bundles import single_bundle
from costs import timed
from paramorph_rt import DisplacementField, Grid, Registration, Volume, load_volume
from paramorph_rt.geometry.compose import compose
from paramorph_rt.geometry.inverse import invert_field
from paramorph_rt.geometry.spaces import from_sitk, to_sitk
from paramorph_rt.steps.foreground import foreground_threshold
from paramorph_rt.system.threads import itk_threads
from record import Row, weights_sha256
from tables import page_of_rows

COLUMNS = (
    ("inverse", "inverse", ""),
    ("seconds", "seconds", ".1f"),
    ("CPU, s", "cpu_seconds", ".1f"),
    *(
        (f"{way}: {key}, mm", f"from_{way}_{key}_mm", ".3f")
        for way in ("moving", "fixed")
        for key in ("mean", "p99", "max")
    ),
)

Invert = Callable[[sitk.Image], sitk.Image]
ITK: dict[str, Invert] = {
    "ITK InvertDisplacementField, 10 iterations": lambda w: sitk.InvertDisplacementField(w, 10),
    "ITK InvertDisplacementField, 50 iterations": lambda w: sitk.InvertDisplacementField(w, 50),
    "ITK IterativeInverseDisplacementField": sitk.IterativeInverseDisplacementField,
}


def by_itk(
    invert: Invert, field: DisplacementField, affine: np.ndarray, grid: Grid
) -> DisplacementField:
    """The inverse of a complete field on a grid of the moving side."""
    back = np.linalg.inv(affine)
    rest = back @ field
    inverted = invert(to_sitk(rest.vectors_mm.astype(np.float64), rest.grid))
    inverse = DisplacementField(rest.grid, from_sitk(inverted)[0].astype(np.float32))
    return compose([back, inverse], grid)


def there_and_back(
    there: DisplacementField, back: DisplacementField, image: Volume
) -> dict[str, float]:
    """Of an image's foreground, on the grid of `there`; points that leave on the way are out."""
    both = compose([there, back], image.grid)
    index = back.grid.index(there.grid.positions() + there.vectors_mm)
    inside = ((index >= 0) & (index <= np.array(back.grid.shape) - 1)).all(axis=-1)
    shown = image.data > foreground_threshold(image.data)
    error = np.linalg.norm(both.vectors_mm[inside & shown], axis=-1)
    p99, most = np.percentile(error, [99, 100])
    return {"mean": float(error.mean()), "p99": float(p99), "max": float(most)}


def run(args: argparse.Namespace) -> Row:
    """Register, invert the field by each way, judge."""
    _, bundle = single_bundle(args.model)
    moving, fixed = load_volume(args.moving), load_volume(args.fixed)
    rows: list[Row] = []
    with itk_threads(args.threads):
        register = Registration(bundle, args.threads)
        result, _, registering = timed(lambda: register(moving, fixed))
        field, affine = result.displacement, result.affine
        ways: dict[str, Callable[[], DisplacementField]] = {
            "ours": lambda: invert_field(field, moving.grid).field,
            **{name: partial(by_itk, way, field, affine, moving.grid) for name, way in ITK.items()},
        }
        for name, way in ways.items():
            inverse, seconds, cpu_seconds = timed(way)
            row: Row = {"inverse": name, "seconds": seconds, "cpu_seconds": cpu_seconds}
            for side, there, back, image in (
                ("moving", inverse, field, moving),
                ("fixed", field, inverse, fixed),
            ):
                errors = there_and_back(there, back, image)
                row |= {f"from_{side}_{key}_mm": value for key, value in errors.items()}
            rows.append(row)
    return {
        "weights_sha256": weights_sha256(bundle),
        "threads": args.threads,
        "moving": moving.name,
        "fixed": fixed.name,
        "folded_percent": result.metrics["nonpositive_jacobian_percent"],
        "registering_cpu_seconds": registering,
        "rows": rows,
    }


BODY = page_of_rows(
    "{moving} → {fixed} ({folded_percent:.3f} % of voxels folded); registering took "
    "{registering_cpu_seconds:.1f} s of CPU without files. There and back of the foreground, from "
    "either side, by ITK's composition.",
    COLUMNS,
)
OPTIONS = (
    option("--moving", type=Path, required=True),
    option("--fixed", type=Path, required=True),
    MODEL,
    THREADS,
)
BENCHMARK = Benchmark(run, BODY, OPTIONS)

if __name__ == "__main__":
    BENCHMARK.exit()

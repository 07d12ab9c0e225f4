"""Inverses of a real displacement field: ours and ITK's, by time and by what there and back costs.

ITK's filters invert on the field's own grid and want no affine, so they are given the field without
it, and the affine's inverse is put before theirs. All are judged by ITK's own composition.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from bundles import add_model_option, single_bundle
from paramorph_rt import DisplacementField, Grid, Registration, Volume, load_volume
from paramorph_rt.errors import exit_code
from paramorph_rt.geometry.compose import compose
from paramorph_rt.geometry.inverse import invert_field
from paramorph_rt.geometry.spaces import from_sitk, to_sitk
from paramorph_rt.steps.foreground import foreground_threshold
from paramorph_rt.system.threads import itk_threads
from record import weights_sha256, write_page, write_result
from tables import markdown_table, origin

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
    rest = field.composed_with_affine(back)
    found = invert(to_sitk(rest.vectors_mm.astype(np.float64), rest.grid))
    inverse = DisplacementField(rest.grid, from_sitk(found)[0].astype(np.float32))
    whole = compose([back, inverse], grid)
    assert isinstance(whole, DisplacementField)
    return whole


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


def run(args: argparse.Namespace) -> None:
    _, bundle = single_bundle(args.model)
    moving, fixed = load_volume(args.moving), load_volume(args.fixed)
    rows: list[dict[str, Any]] = []
    with itk_threads(args.threads):
        began = time.process_time()
        result = Registration(bundle, args.threads)(moving, fixed)
        registering = time.process_time() - began
        field, affine = result.displacement, result.affine
        ways: dict[str, Callable[[], DisplacementField]] = {
            "ours": lambda: invert_field(field, moving.grid).field
        }
        for name, invert in ITK.items():
            ways[name] = lambda invert=invert: by_itk(invert, field, affine, moving.grid)
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found = way()
            row = {
                "inverse": name,
                "seconds": time.perf_counter() - wall,
                "cpu_seconds": time.process_time() - cpu,
            }
            for side, there, back, image in (
                ("moving", found, field, moving),
                ("fixed", field, found, fixed),
            ):
                for key, value in there_and_back(there, back, image).items():
                    row[f"from_{side}_{key}_mm"] = value
            rows.append(row)
    content = {
        "weights_sha256": weights_sha256(bundle),
        "threads": args.threads,
        "moving": moving.name,
        "fixed": fixed.name,
        "folded_percent": result.metrics["nonpositive_jacobian_percent"],
        "registering_cpu_seconds": registering,
        "rows": rows,
    }
    path = write_result(args.name, content)
    write_page(path, page(json.loads(path.read_text(encoding="utf-8"))))


def page(result: dict[str, Any]) -> str:
    """What was measured, for people."""
    return (
        "# Inverses of a displacement field\n\n"
        f"{result['moving']} → {result['fixed']} ({result['folded_percent']:.3f} % of voxels "
        f"folded), {result['threads']} threads; registering took "
        f"{result['registering_cpu_seconds']:.1f} s of CPU without files. There and back of the "
        "foreground, from either side, by ITK's composition.\n\n"
        f"{markdown_table(result['rows'], COLUMNS)}\n{origin(result)}\n"
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--moving", type=Path, required=True)
    p.add_argument("--fixed", type=Path, required=True)
    add_model_option(p)
    cores = len(os.sched_getaffinity(0))
    p.add_argument("--threads", type=int, default=cores, help="default: all cores")
    p.add_argument("--name", default="inverse", help="of the result files (default: %(default)s)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("inverse", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

"""The affine alignment from random poses, beside ANTs' own.

The moving image of each pair is turned by up to 60 degrees about a random axis, scaled by 0.5 to 2
and moved, all by its header, so that no voxel changes; every second one also loses up to a quarter
of the head at one side of each axis. Whatever the pose, the same brain has to come upon the same
brain: the moving labels, whole and in the same pose, are compared with the fixed ones at every
second voxel.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.affines import from_matvec

from evaluation import LabelledPair, load_pair
from pairs import add_pair_options, labelled_pairs
from paramorph_rt.errors import ParamorphError, exit_code
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, save_volume
from paramorph_rt.metrics.overlap import dice, mean_over, present_labels
from paramorph_rt.steps.affine import align_affine
from paramorph_rt.steps.foreground import foreground_box, foreground_threshold
from paramorph_rt.system.threads import itk_threads
from paramorph_rt.transforms.itk import read_affine
from record import write_page, write_result
from report import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Row = dict[str, Any]
# Dice that a pose may cost before it counts as a failure.
MARGIN = 0.02
MOST_DEGREES, MOST_SCALE, MOST_SHIFT_MM, MOST_CUT = 60, 2.0, 50, 0.25
AS_THEY_ARE, POSED, CROPPED = "as they are", "random pose", "random pose, cut"
COLUMNS = (
    ("images", "case", ""),
    ("method", "method", ""),
    ("alignments", "runs", "d"),
    ("found", "found", "d"),
    ("Dice, mean", "dice", ".3f"),
    ("worst", "dice_worst", ".3f"),
    ("mm from unperturbed, median", "off_mm", ".2f"),
    ("seconds, median", "seconds", ".2f"),
    ("CPU seconds, median", "cpu_seconds", ".2f"),
    ("told, lowest", "told", ".2f"),
    ("warned", "warned", "d"),
)


def random_pose(rng: np.random.Generator, centre: np.ndarray) -> tuple[np.ndarray, Row]:
    """A similarity of the world about a point, and what to call it."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    degrees = rng.uniform(0, MOST_DEGREES)
    scale = MOST_SCALE ** rng.uniform(-1, 1)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = math.radians(degrees)
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    shift = rng.uniform(-MOST_SHIFT_MM, MOST_SHIFT_MM, 3)
    pose = from_matvec(scale * turn, centre + shift - scale * turn @ centre)
    return pose, {"degrees": round(degrees, 1), "scale": round(scale, 3)}


def cropped(volume: Volume, rng: np.random.Generator) -> Volume:
    """The image without up to a quarter of its foreground at one side of each axis."""
    lo, hi = (np.array(side) for side in foreground_box(volume))
    cut = (rng.uniform(0, MOST_CUT, 3) * (hi - lo)).astype(int)
    first = rng.integers(0, 2, 3) == 0
    lo, hi = np.where(first, lo + cut, 0), np.where(first, volume.data.shape, hi - cut)
    box = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
    data = np.ascontiguousarray(volume.data[box])
    return Volume(data, volume.grid.cropped(lo, hi), volume.name)


def posed(volume: Volume, pose: np.ndarray) -> Volume:
    return replace(volume, grid=Grid(volume.grid.shape, pose @ volume.grid.affine))


def ours(moving: Volume, fixed: Volume) -> tuple[np.ndarray, Row]:
    start, cpu = time.perf_counter(), time.process_time()
    found = align_affine(moving, fixed)
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return found.affine, {**seconds, "told": found.told, "warnings": list(found.warnings)}


def ants(moving: Volume, fixed: Volume) -> tuple[np.ndarray, Row]:
    """ANTs' affine registration with the default settings of antspyx."""
    import ants as antspyx

    with tempfile.TemporaryDirectory() as folder:
        images = []
        for name, volume in (("fixed", fixed), ("moving", moving)):
            save_volume(f"{folder}/{name}.nii", volume)
            images.append(antspyx.image_read(f"{folder}/{name}.nii"))
        start, cpu = time.perf_counter(), time.process_time()
        found = antspyx.registration(
            *images, type_of_transform="Affine", outprefix=f"{folder}/ants_"
        )
        seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
        return read_affine(Path(found["fwdtransforms"][0])), seconds


METHODS: dict[str, Callable[[Volume, Volume], tuple[np.ndarray, Row]]] = {
    "ours": ours,
    "ANTs": ants,
}


def dice_of(affine: np.ndarray, moving_labels: Volume, fixed_labels: Volume) -> float:
    """Mean over the common labels, at every second voxel of the fixed grid."""
    grid = fixed_labels.grid
    target = fixed_labels.data[::2, ::2, ::2]
    coarse = Grid(target.shape, grid.affine @ np.diag([2, 2, 2, 1]))
    warped = resample_to_grid(moving_labels, coarse, affine, "nearest")
    common = present_labels(moving_labels.data) & present_labels(fixed_labels.data)
    overlap = dice(target, warped)
    return mean_over({label: overlap.get(label, 0.0) for label in common}, common)


def measure(pair: LabelledPair, poses: int, peer_poses: int, seed: int) -> Iterator[Row]:
    """Each method on the pair as it is, then from each pose."""
    rng = np.random.default_rng(seed)
    fixed = pair.fixed
    name = f"{pair.moving.name} → {fixed.name}"
    inside = np.argwhere(fixed.data > foreground_threshold(fixed.data))[::97]
    points = np.c_[fixed.grid.world(inside), np.ones(len(inside))]
    unperturbed: dict[str, np.ndarray] = {}
    centre = pair.moving.grid.world(np.array(pair.moving.data.shape) / 2)
    for number in range(poses + 1):
        if number == 0:
            case, pose, what = AS_THEY_ARE, np.eye(4), {}
            image = pair.moving
        else:
            pose, what = random_pose(rng, centre)
            case = CROPPED if number % 2 == 0 else POSED
            image = cropped(pair.moving, rng) if case == CROPPED else pair.moving
        for method, align in METHODS.items():
            if method != "ours" and number > peer_poses:
                continue
            row = {"pair": name, "case": case, "method": method, **what}
            try:
                affine, report = align(posed(image, pose), fixed)
            except (ParamorphError, RuntimeError) as err:
                yield row | {"dice": 0.0, "error": str(err).splitlines()[-1]}
                continue
            back = np.linalg.inv(pose) @ affine
            apart = points @ (back - unperturbed.setdefault(method, back)).T
            yield row | {
                "dice": dice_of(affine, posed(pair.moving_labels, pose), pair.fixed_labels),
                "off_mm": float(np.linalg.norm(apart[:, :3], axis=1).mean()),
                **report,
            }


def judge(rows: list[Row]) -> None:
    """Say of every row whether its Dice comes near the best one of its pair as it is."""
    best: dict[str, float] = {}
    for row in rows:
        if row["case"] == AS_THEY_ARE:
            best[row["pair"]] = max(best.get(row["pair"], 0.0), row["dice"])
    for row in rows:
        row["found"] = row["dice"] >= best[row["pair"]] - MARGIN


def summarise(rows: Iterable[Row]) -> Iterator[Row]:
    rows = list(rows)
    for case in (AS_THEY_ARE, POSED, CROPPED):
        for method in METHODS:
            of = [r for r in rows if (r["case"], r["method"]) == (case, method)]
            if not of:
                continue
            middle = {
                key: statistics.median(r[key] for r in of if key in r)
                for key in ("off_mm", "seconds", "cpu_seconds")
            }
            told = [r["told"] for r in of if "told" in r]
            yield {
                "case": case,
                "method": method,
                "runs": len(of),
                "found": sum(r["found"] for r in of),
                "dice": statistics.mean(r["dice"] for r in of),
                "dice_worst": min(r["dice"] for r in of),
                **middle,
                "told": min(told) if told else None,
                "warned": sum(bool(r["warnings"]) for r in of if "told" in r) if told else None,
            }


def run(args: argparse.Namespace) -> None:
    """Measure every pair; write the JSON and the table."""
    rows: list[Row] = []
    with itk_threads(args.threads):
        for number, (moving, fixed) in enumerate(labelled_pairs(args.folder, args.pairs)):
            for row in measure(load_pair(moving, fixed), args.poses, args.ants, number):
                rows.append(row)
                print(json.dumps(row, ensure_ascii=False), flush=True)
    judge(rows)
    path = write_result(
        "affine",
        {
            "threads": args.threads,
            "margin": MARGIN,
            "summary": list(summarise(rows)),
            "rows": rows,
        },
        packages=["antspyx"],
    )
    write_page(path, _page(json.loads(path.read_text(encoding="utf-8")), path.stem))


def _page(result: Row, name: str) -> str:
    return (
        f"# {name}\n\n"
        f"Written by `benchmarks/affine.py` from `{name}.json`: {result['threads']} threads of "
        f"{result['processor']}, commit {result['commit']}. Rotations up to {MOST_DEGREES}°, "
        f"scales from {1 / MOST_SCALE:g} to {MOST_SCALE:g}, shifts up to {MOST_SHIFT_MM} mm per "
        f"axis; cut: up to {100 * MOST_CUT:g} % of the moving head at one side of each axis. "
        f"Found: mean Dice at most {MARGIN} below the best one of the pair as it is, of either "
        "method. Distances are from the method's own result for the pair as it is, over the fixed "
        "brain. Told: `told_share` of metrics.json.\n\n"
        + markdown_table(result["summary"], COLUMNS)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_pair_options(parser)
    add("--poses", type=int, default=20, help="random poses per pair (default: %(default)s)")
    add(
        "--ants", type=int, default=2, help="the first so many for ANTs, too (default: %(default)s)"
    )
    add("--threads", type=int, default=os.cpu_count(), help="for both (default: all cores)")
    args = parser.parse_args()
    # Read when ANTs is imported.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(args.threads)
    return exit_code("affine.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

"""The affine alignment from random poses, beside ANTs' own.

The moving image of each pair is turned by up to 60 degrees about a random axis, scaled by 0.5 to 2
and moved, all by its header, so that no voxel changes; every second one also loses up to a quarter
of the head at one side of each axis. Whatever the pose, the same brain has to come upon the same
brain: the moving labels, whole and in the same pose, are compared with the fixed ones at every
second voxel.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from scipy.spatial.transform import Rotation

from benchmark import FOLDER, THREADS, Benchmark, option
from costs import timed
from pairs import LabelledPair, labelled_pairs
from paramorph_rt.errors import ParamorphError
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, save_volume
from paramorph_rt.metrics.overlap import mean_dice
from paramorph_rt.steps.affine import align_affine
from paramorph_rt.steps.foreground import foreground_box, foreground_of
from paramorph_rt.system.threads import itk_threads
from paramorph_rt.transforms.itk import read_affine
from record import Result, Row, Rows
from tables import average, grouped, markdown_table

# Dice that a pose may cost before it counts as a failure.
MARGIN = 0.02
MOST_DEGREES, MOST_SCALE, MOST_SHIFT_MM, MOST_CUT = 60, 2.0, 50, 0.25
MEDIANS = ("off_mm", "seconds", "cpu_seconds")
CASES = AS_THEY_ARE, POSED, CROPPED = "as they are", "random pose", "random pose, cut"
COLUMNS = (
    ("images", "case", ""),
    ("method", "method", ""),
    ("alignments", "runs", "d"),
    ("aligned", "aligned", "d"),
    ("Dice, mean", "dice", ".3f"),
    ("worst", "dice_worst", ".3f"),
    ("mm from unperturbed, median", "off_mm", ".2f"),
    ("seconds, median", "seconds", ".2f"),
    ("CPU seconds, median", "cpu_seconds", ".2f"),
    ("uncertainty coefficient, lowest", "uncertainty_coefficient", ".2f"),
    ("warned", "warned", "d"),
)


def random_pose(rng: np.random.Generator, centre: np.ndarray) -> tuple[np.ndarray, Row]:
    """A similarity of the world about a point, and what to call it."""
    axis = rng.normal(size=3)
    degrees = rng.uniform(0, MOST_DEGREES)
    scale = MOST_SCALE ** rng.uniform(-1, 1)
    turn = Rotation.from_rotvec(degrees * axis / np.linalg.norm(axis), degrees=True)
    matrix = scale * turn.as_matrix()
    shift = rng.uniform(-MOST_SHIFT_MM, MOST_SHIFT_MM, 3)
    pose = from_matvec(matrix, centre + shift - matrix @ centre)
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
    """The same voxels elsewhere."""
    return replace(volume, grid=Grid(volume.grid.shape, pose @ volume.grid.affine))


def ours(moving: Volume, fixed: Volume) -> tuple[np.ndarray, Row]:
    """As `paramorph-rt infer` aligns."""
    alignment, seconds, cpu_seconds = timed(lambda: align_affine(moving, fixed))
    return alignment.affine, {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "uncertainty_coefficient": alignment.uncertainty_coefficient,
        "warnings": list(alignment.warnings),
    }


def ants(moving: Volume, fixed: Volume) -> tuple[np.ndarray, Row]:
    """ANTs' affine registration with the default settings of antspyx."""
    import ants as antspyx

    with tempfile.TemporaryDirectory() as folder:
        images = []
        for name, volume in (("fixed", fixed), ("moving", moving)):
            save_volume(f"{folder}/{name}.nii", volume)
            images.append(antspyx.image_read(f"{folder}/{name}.nii"))
        result, seconds, cpu_seconds = timed(
            lambda: antspyx.registration(
                *images, type_of_transform="Affine", outprefix=f"{folder}/ants_"
            )
        )
        affine = read_affine(Path(result["fwdtransforms"][0]))
        return affine, {"seconds": seconds, "cpu_seconds": cpu_seconds}


Align = Callable[[Volume, Volume], tuple[np.ndarray, Row]]
METHODS: dict[str, Align] = {"ours": ours, "ANTs": ants}


def dice_of(affine: np.ndarray, pose: np.ndarray, pair: LabelledPair) -> float | None:
    """Mean over the common labels, at every second voxel of the fixed grid."""
    target = pair.fixed_labels.data[::2, ::2, ::2]
    grid = pair.fixed.grid.coarsened(2)
    warped = resample_to_grid(posed(pair.moving_labels, pose), grid, affine, "nearest")
    return mean_dice(target, warped, pair.moving_labels.data)


def measure(pair: LabelledPair, poses: int, peer_poses: int, seed: int) -> Iterator[Row]:
    """Each method on the pair as it is, then from each pose."""
    rng = np.random.default_rng(seed)
    fixed = pair.fixed
    inside = np.argwhere(foreground_of(fixed))[::97]
    points = np.c_[fixed.grid.world(inside), np.ones(len(inside))]
    unperturbed: dict[str, np.ndarray] = {}
    centre = pair.moving.grid.world(np.array(pair.moving.data.shape) / 2)
    for number in range(poses + 1):
        case, pose, what, image = AS_THEY_ARE, np.eye(4), {}, pair.moving
        if number > 0:
            pose, what = random_pose(rng, centre)
            case = CROPPED if number % 2 == 0 else POSED
            image = cropped(image, rng) if case == CROPPED else image
        for method, align in METHODS.items():
            if method != "ours" and number > peer_poses:
                continue
            row = {"pair": f"{pair.moving.name} → {fixed.name}", "case": case, "method": method}
            row |= what
            try:
                affine, report = align(posed(image, pose), fixed)
            except (ParamorphError, RuntimeError) as err:
                yield row | {"dice": 0.0, "error": str(err).splitlines()[-1]}
                continue
            back = np.linalg.inv(pose) @ affine
            apart = points @ (back - unperturbed.setdefault(method, back)).T
            yield row | {
                "dice": dice_of(affine, pose, pair),
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
        row["aligned"] = row["dice"] >= best[row["pair"]] - MARGIN


def summarise(rows: Iterable[Row]) -> Iterator[Row]:
    """A row per case and method."""
    groups = grouped(rows, "case", "method")
    for (case, method), each in sorted(groups.items(), key=lambda group: CASES.index(group[0][0])):
        ours = [row for row in each if "uncertainty_coefficient" in row]
        yield {
            "case": case,
            "method": method,
            "runs": len(each),
            "aligned": sum(row["aligned"] for row in each),
            "dice": statistics.mean(row["dice"] for row in each),
            "dice_worst": min(row["dice"] for row in each),
            **{key: average(each, key, statistics.median) for key in MEDIANS},
            "uncertainty_coefficient": average(ours, "uncertainty_coefficient", min),
            "warned": sum(bool(row["warnings"]) for row in ours) if ours else None,
        }


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Measure every pair."""
    # Read when ANTs is imported.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(args.threads)
    rows = Rows(args.name, {"threads": args.threads, "margin": MARGIN}, ["antspyx"])
    with itk_threads(args.threads):
        for number, case in enumerate(labelled_pairs(args.folder)):
            for row in measure(case.load(), args.poses, args.ants, number):
                rows.note(row)
    judge(rows)
    yield rows.write(summary=list(summarise(rows)))


def body(result: Result) -> str:
    """The text of a result's page."""
    return (
        f"Rotations up to {MOST_DEGREES}°, scales from {1 / MOST_SCALE:g} to {MOST_SCALE:g}, "
        f"shifts up to {MOST_SHIFT_MM} mm per axis; cut: up to {100 * MOST_CUT:g} % of the moving "
        f"head at one side of each axis. Aligned: mean Dice at most {MARGIN} below the best one of "
        "the pair as it is, of either method. Distances are from the method's own result for the "
        "pair as it is, over the fixed brain.\n\n" + markdown_table(result["summary"], COLUMNS)
    )


OPTIONS = (
    FOLDER,
    option("--poses", type=int, default=20, help="random poses per pair"),
    option("--ants", type=int, default=2, help="the first so many for ANTs, too"),
    THREADS,
)
BENCHMARK = Benchmark(run, body, OPTIONS)

if __name__ == "__main__":
    BENCHMARK.exit()

"""`paramorph-rt infer`: register one pair of volumes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ..spaces import Grid

STAGES = ("before", "affine", "after")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "infer",
        help="register one moving volume to one fixed volume",
        description="Register a moving to a fixed volume. All results lie on the fixed image's "
        "own grid (or --output-grid): warped.nii.gz, displacement.nii.gz (ITK convention, "
        "complete), affine.tfm, warped_labels.nii.gz and metrics.json.",
    )
    add = parser.add_argument
    add("--moving", type=Path, required=True, metavar="NII", help="volume to be warped")
    add("--fixed", type=Path, required=True, metavar="NII", help="volume to match")
    add("--out-dir", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--model", type=Path, metavar="BUNDLE", help="model bundle (default: the shipped one)")
    add("--moving-labels", type=Path, metavar="NII", help="label map of the moving volume")
    add("--fixed-labels", type=Path, metavar="NII", help="label map of the fixed volume")
    affine = parser.add_mutually_exclusive_group().add_argument
    affine("--no-affine", action="store_true", help="the pair is affinely aligned already")
    affine(
        "--affine",
        choices=("rigid", "similarity", "affine"),
        help="what to align first (default: affine; rigid for a cut-out of a larger body)",
    )
    add(
        "--initial-transform",
        type=Path,
        metavar="FILE",
        help="linear transform, fixed to moving, in a file that tells its format (ITK, ANTs, "
        "FreeSurfer): where the affine search starts, or with --no-affine the affine itself",
    )
    add(
        "--inverse",
        action="store_true",
        help="also write inverse_displacement.nii.gz, which lies on the moving image's grid",
    )
    add(
        "--output-grid",
        default="fixed",
        metavar="GRID",
        help="voxels on which the results lie, in the fixed world: fixed (default), moving, or a "
        "NIfTI file's",
    )
    add(
        "--interpolation",
        choices=("linear", "nearest", "bspline"),
        default="linear",
        help="of warped images (default: linear); labels take the nearest voxel",
    )
    add(
        "--also",
        type=Path,
        nargs="+",
        default=[],
        metavar="NII",
        help="more images in the moving image's world, on any grid: warped along into also_warped/",
    )
    add(
        "--also-labels",
        type=Path,
        nargs="+",
        default=[],
        metavar="NII",
        help="the same for label maps",
    )
    add(
        "--backend",
        choices=("auto", "onnxruntime", "openvino"),
        default="auto",
        help="inference engine (default: auto, openvino where it is installed)",
    )
    add(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of the network (default: auto, fp32); bf16 needs openvino and a CPU that has it",
    )
    add("--threads", type=_positive, metavar="N", help="CPU threads (default: all cores)")
    add("--force", action="store_true", help="replace the results of an earlier run")
    add("--json", action="store_true", help="print metrics.json to stdout instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Register, save, print."""
    from ..outputs import check_outputs
    from ..registration import Registration

    with _progress_on_stderr():
        check_outputs(args.out_dir, args.force)
        options = {
            "affine": args.affine or not args.no_affine,
            "initial": _initial(args),
            "inverse": args.inverse,
            "output_grid": _output_grid(args),
            "interpolation": args.interpolation,
            "also": args.also,
            "also_labels": args.also_labels,
        }
        result = Registration(args.model, args.threads, args.backend, args.precision)(
            args.moving, args.fixed, args.moving_labels, args.fixed_labels, **options
        )
        result.save(args.out_dir, args.force)
    print(json.dumps(result.metrics) if args.json else _table(result.metrics, args.out_dir))
    return 0


def _initial(args: argparse.Namespace) -> np.ndarray | None:
    """The affine to start from.

    Raises:
        TransformError: The file holds a field, or cannot be read.
    """
    if args.initial_transform is None:
        return None
    from ..errors import TransformError
    from ..field import DisplacementField
    from ..transforms.formats import read_transform

    transform = read_transform(args.initial_transform)
    if isinstance(transform, DisplacementField):
        raise TransformError(
            f"{args.initial_transform.name}: expected a linear transform to start from, got a "
            "displacement field; pass its affine part."
        )
    return transform


def _output_grid(args: argparse.Namespace) -> Grid | None:
    from ..volume import load_grid

    if args.output_grid == "fixed":
        return None
    return load_grid(args.moving if args.output_grid == "moving" else args.output_grid)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


@contextmanager
def _progress_on_stderr() -> Iterator[None]:
    log = logging.getLogger("paramorph_rt")
    handler = logging.StreamHandler(sys.stderr)
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _table(metrics: dict[str, Any], out_dir: Path) -> str:
    rows = {"": {stage: stage for stage in STAGES}, "NCC": metrics["ncc"]}
    for key, title in (("dice", "mean Dice"), ("assd_mm", "mean ASSD (mm)")):
        if key in metrics:
            rows[title] = {stage: entry["mean"] for stage, entry in metrics[key].items()}
    lines = [
        f"{title:<16}" + "".join(f"{_cell(row.get(stage)):>9}" for stage in STAGES)
        for title, row in rows.items()
    ]
    growth = metrics["network_grid"]["spacing_growth"]
    if growth > 1:
        lines.append(f"network grid {growth:.2f} times coarser than the model's, to fit the image")
    if error := metrics.get("inverse_consistency_mm"):
        mean, highest = error["mean"], error["max"]
        lines.append(f"inverse off by   {mean:.3f} mm on average, {highest:.3f} mm at most")
    lines.append(f"folded voxels    {metrics['nonpositive_jacobian_percent']:.4f} %")
    lines.append(f"{sum(metrics['seconds'].values()):.1f} s; results in {out_dir}")
    return "\n".join(lines)


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3f}"

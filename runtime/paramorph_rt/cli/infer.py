"""`paramorph-rt infer`: register one pair of volumes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends import AUTO, BACKENDS, PRECISIONS

if TYPE_CHECKING:
    import numpy as np

    from ..outputs import Names
    from ..preprocess import Interpolation
    from ..registration import RegistrationResult
    from ..report.pictures import Pictures
    from ..spaces import Grid
    from ..volume import Series, Volume

STAGES = ("before", "affine", "after")

_EPILOG = """
The folder of results appears as a whole when all has worked; until then nothing is written.

examples:
  paramorph-rt infer --moving m.nii.gz --fixed f.nii.gz --out-dir OUT

  paramorph-rt infer --moving m.nii.gz --fixed f.nii.gz --out-dir OUT --inverse --report \\
      --moving-labels ml.nii.gz --fixed-labels fl.nii.gz

  paramorph-rt infer --moving bold.nii.gz --fixed t1.nii.gz --out-dir OUT --affine rigid \\
      --apply-to-all --output-grid moving

  paramorph-rt infer --moving dicom/ --fixed mni.nii.gz --out-dir derivatives --bids-names
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "infer",
        help="register one moving volume to one fixed volume",
        description="Register a moving to a fixed volume. All results lie on the fixed image's "
        "own grid (or --output-grid): warped.nii.gz, displacement.nii.gz (ITK convention, "
        "complete), affine.tfm, warped_labels.nii.gz and metrics.json.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "--moving",
        type=Path,
        required=True,
        metavar="FILE",
        help="volume to be warped: NIfTI, NRRD, MetaImage, or a folder with a DICOM series; so are "
        "all others. Results are NIfTI",
    )
    add("--fixed", type=Path, required=True, metavar="FILE", help="volume to match")
    add("--out-dir", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--moving-labels", type=Path, metavar="NII", help="label map of the moving volume")
    add("--fixed-labels", type=Path, metavar="NII", help="label map of the fixed volume")
    add(
        "--moving-mask",
        type=Path,
        metavar="NII",
        help="what counts in the moving volume (not 0), on its grid, such as a brain mask; the "
        "rest is taken for background, and holes, such as a lesion, drive nothing",
    )
    add("--fixed-mask", type=Path, metavar="NII", help="the same for the fixed volume")
    add(
        "--initial-transform",
        type=Path,
        metavar="FILE",
        help="linear transform, fixed to moving, in a file that tells its format (ITK, ANTs, "
        "FreeSurfer): where the affine search starts, or with --no-affine the affine itself",
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
        "--apply-to-all",
        action="store_true",
        help="the moving file is a 4-D series: register one volume and also write all, warped, as "
        "warped_series.nii.gz",
    )
    add(
        "--reference-volume",
        type=_volume_number,
        metavar="N",
        help="which volume of the series is registered, from 0 (default: the mean of all)",
    )
    add(
        "--bids-names",
        action="store_true",
        help="names and sidecars of BIDS derivatives, DIR being the dataset: "
        "sub-X/anat/sub-X_space-MNI_T1w.nii.gz, sub-X_from-T1w_to-MNI_mode-image_xfm.nii.gz",
    )
    add("--force", action="store_true", help="replace the results of an earlier run")
    add("--json", action="store_true", help="print metrics.json to stdout instead of a table")
    add_common_options(parser)
    add_picture_options(parser)
    parser.set_defaults(run=run)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `infer` and `cohort` have in common."""
    add = parser.add_argument
    add("--model", type=Path, metavar="BUNDLE", help="model bundle (default: the shipped one)")
    affine = parser.add_mutually_exclusive_group().add_argument
    affine("--no-affine", action="store_true", help="the pair is affinely aligned already")
    affine(
        "--affine",
        choices=("rigid", "similarity", "affine"),
        help="what to align first (default: affine; rigid for a cut-out of a larger body)",
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
        "--backend",
        choices=(AUTO, *BACKENDS),
        default=AUTO,
        metavar="ENGINE",
        help=f"inference engine: {', '.join(BACKENDS)} (default: auto, the fastest that works "
        "here; see paramorph-rt info)",
    )
    add(
        "--precision",
        choices=(AUTO, *PRECISIONS),
        default=AUTO,
        help="of the network (default: auto, fp32 on the CPU, fp16 on a GPU if the bundle has it); "
        "bf16 needs openvino and a CPU that has it, or a bundle that holds it",
    )
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all cores)")


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Declare which pictures are made of a registered pair."""
    add = parser.add_argument_group(
        "pictures", "they need the extra: pip install 'paramorph-rt[report]'"
    ).add_argument
    add(
        "--report",
        action="store_true",
        help="also write report.html: one page, under 5 MB for 1 mm brains, that works offline",
    )
    add(
        "--report-3d",
        action="store_true",
        help="write it with an interactive 3-D view, which adds about 4 MB",
    )
    add("--figures", action="store_true", help="also write PNG figures for papers into figures/")
    add(
        "--label-names",
        type=Path,
        metavar="FILE",
        help="names of labels for the report: a table with a number and a name in each line "
        "(CSV, TSV, FreeSurfer, ITK-SNAP)",
    )


def run(args: argparse.Namespace) -> int:
    """Register, save, print."""
    from ..outputs import check_outputs
    from ..registration import Registration

    names = _names(args)
    check_outputs(args.out_dir, args.force, names)
    wanted = pictures(args)
    wanted.check()
    moving, series = _moving(args)
    options = {
        "affine": args.affine or not args.no_affine,
        "initial": _initial(args),
        "moving_mask": args.moving_mask,
        "fixed_mask": args.fixed_mask,
        "inverse": args.inverse,
        "output_grid": _output_grid(args, series),
        "interpolation": args.interpolation,
        "also": args.also,
        "also_labels": args.also_labels,
    }
    inputs = moving, args.fixed, args.moving_labels, args.fixed_labels
    register = Registration(args.model, args.threads, args.backend, args.precision)
    result = register(*inputs, **options)
    extras = dict(wanted.of(result, *inputs, _parameters(args)))
    if series is not None and args.apply_to_all:
        extras["series"] = _series_writer(series, result, args.interpolation, names)
    result.save(args.out_dir, args.force, extras, names)
    print(json.dumps(result.metrics) if args.json else _table(result.metrics, args.out_dir))
    return 0


def pictures(args: argparse.Namespace) -> Pictures:
    """Which pictures were asked for."""
    from ..report.pictures import Pictures

    names = args.label_names and args.label_names.absolute()
    return Pictures(args.report or args.report_3d, args.report_3d, args.figures, names)


def _parameters(args: argparse.Namespace) -> dict[str, object]:
    """The registration's options, as a report shows them."""
    found = {
        "affine": "none" if args.no_affine else args.affine or "affine",
        "initial transform": args.initial_transform and args.initial_transform.name,
        "output grid": Path(args.output_grid).name,
        "interpolation": args.interpolation,
        "inverse": "yes" if args.inverse else None,
        "threads": args.threads,
        "warped along": ", ".join(path.name for path in (*args.also, *args.also_labels)),
    }
    return {name: value for name, value in found.items() if value}


def _initial(args: argparse.Namespace) -> np.ndarray | None:
    from ..transforms.formats import read_start

    return args.initial_transform and read_start(args.initial_transform)


def _names(args: argparse.Namespace) -> Names:
    from ..bids import bids_names
    from ..outputs import PLAIN

    if not args.bids_names:
        return PLAIN
    return bids_names(
        *(args.moving, args.fixed, args.out_dir),
        moving_labels=args.moving_labels,
        also=args.also,
        also_labels=args.also_labels,
        output_grid=args.output_grid,
        series=args.apply_to_all,
    )


def _moving(args: argparse.Namespace) -> tuple[Path | Volume, Series | None]:
    """What is registered, and the series that it stands for.

    Raises:
        VolumeError: The file holds no series, or none of so many volumes.
    """
    if not args.apply_to_all and args.reference_volume is None:
        return args.moving, None
    from ..errors import VolumeError
    from ..volume import load_series

    series = load_series(args.moving)
    if args.reference_volume is None:
        return series.mean(), series
    try:
        return series[args.reference_volume], series
    except IndexError as err:
        raise VolumeError(str(err)) from err


def _series_writer(
    series: Series, result: RegistrationResult, interpolation: Interpolation, names: Names
) -> Callable[[Path], None]:
    from ..volume import save_series
    from ..warp import warp_volumes

    def write(folder: Path) -> None:
        field = result.displacement
        volumes = warp_volumes(iter(series), field, interpolation)
        save_series(folder / names.series, volumes, field.grid, series)

    return write


def _output_grid(args: argparse.Namespace, series: Series | None) -> Grid | None:
    from ..volume import load_grid

    if args.output_grid == "fixed":
        return None
    if args.output_grid == "moving" and series is not None:
        return series.grid
    return load_grid(args.moving if args.output_grid == "moving" else args.output_grid)


def _volume_number(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


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
    lines += [f"warning: {warning}" for warning in metrics["warnings"]]
    lines.append(f"folded voxels    {metrics['nonpositive_jacobian_percent']:.4f} %")
    lines.append(f"{sum(metrics['seconds'].values()):.1f} s; results in {out_dir}")
    return "\n".join(lines)


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3f}"

"""`paramorph-rt infer`: register one pair of volumes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backends import AUTO, BACKENDS, PRECISIONS
from ..bundle import AUTO_MODEL, NO_MODEL, bundle_path
from ..errors import install_command
from ..refinement.settings import DEFAULT_ITERATIONS
from .messages import DOUBTFUL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..pair import Settings

# What a file is called that shall be printed.
STDOUT = Path("-")
# Those of `transforms.formats`, which would load NumPy for `--help`.
FORMATS = ("itk", "fsl", "niftyreg", "freesurfer")
STAGES = ("before", "affine", "after")
# ITK makes as many as it is told, and no machine has more cores.
MOST_THREADS = 1024
MOST_ITERATIONS = 10_000
# Of the printed table, over labels.
MEANS = (
    *(("dice", "mean Dice"), ("assd_mm", "mean ASSD (mm)"), ("hd95_mm", "mean HD95 (mm)")),
    ("nsd", "mean NSD"),
)
# Those of `pair.SINGLE`, which would load NumPy for `--help`.
FILES = (
    *("moving", "fixed", "moving_labels", "fixed_labels"),
    *("moving_mask", "fixed_mask", "initial_transform"),
)

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
        *("-m", "--moving"),
        type=Path,
        required=True,
        metavar="FILE",
        help="volume to be warped: NIfTI, NRRD, MetaImage, Analyze, or a folder with a DICOM "
        "series, as all inputs may be; results are NIfTI",
    )
    needed: dict[str, Any] = {"type": Path, "required": True}
    add("-f", "--fixed", metavar="FILE", help="volume that it shall match", **needed)
    add("-o", "--out-dir", metavar="DIR", help="folder for the results", **needed)
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
        help="linear transform, fixed to moving (of FSL and FreeSurfer as they write it): where "
        "the affine search starts, or with --no-affine the affine itself",
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
    add("--force", action="store_true", help="replace the results of an earlier run")
    add_json(parser, "metrics.json")
    add_bids_names(parser)
    add_common_options(parser)
    add_picture_options(parser)
    parser.set_defaults(run=run)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Declare what `infer` and `cohort` have in common."""
    add = parser.add_argument
    add(
        "--model",
        default=AUTO_MODEL,
        metavar="MODEL",
        help="auto (default): the first shipped model that was made for such images, or none; the "
        "name of a shipped model or the folder of a bundle, which is used in any case; or none: a "
        "classical registration, refined from the affine alone",
    )
    add(
        "--refine",
        type=_iterations,
        default=DEFAULT_ITERATIONS,
        metavar="N|off",
        help="iterations at 1.5 mm that refine the field on the pair itself; at 6, 3 and 1 mm "
        f"in proportion (default: {DEFAULT_ITERATIONS}); off keeps the network's field",
    )
    affine = parser.add_mutually_exclusive_group().add_argument
    affine("--no-affine", action="store_true", help="the pair is affinely aligned already")
    affine(
        "--affine",
        choices=("rigid", "similarity", "affine"),
        help="what to align first (default: affine; rigid for a cut-out of a larger body)",
    )
    add(
        "--initial-transform-format",
        choices=FORMATS,
        metavar="FORMAT",
        help=f"of the initial transform: {', '.join(FORMATS)} (default: the file tells; FSL's and "
        "NiftyReg's cannot)",
    )
    add(
        "--inverse",
        action="store_true",
        help="also write inverse_displacement.nii.gz, which lies on the moving image's grid",
    )
    add(
        "--itk-composite",
        action="store_true",
        help="also write composite.h5: affine and field in one file, which antsApplyTransforms and "
        "3D Slicer take (24 bytes per voxel)",
    )
    add(
        "--output-grid",
        default="fixed",
        metavar="GRID",
        help="voxels on which the results lie, in the fixed world: fixed (default), moving, or a "
        "NIfTI file's; a warning tells what of the fixed image they do not cover",
    )
    add(
        "--interpolation",
        choices=("linear", "nearest", "bspline"),
        default="linear",
        help="of warped images (default: linear); labels take the nearest voxel",
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
        "--analyze-orientation",
        metavar="CODE",
        help="where the voxels' axes of images point whose headers do not say it (Analyze, NIfTI "
        "without orientation codes), such as LAS; the source of the data does",
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
    add(
        "--no-surface-distances",
        action="store_true",
        help="of labels measure overlap and volumes alone: ASSD, HD95 and NSD of the more than 100 "
        "labels of a brain take longer than registering it",
    )
    add(
        "--label-names",
        type=Path,
        metavar="FILE",
        help="names of labels for metrics, tables and reports: a number and a name in each line "
        "(CSV, BIDS TSV, FreeSurfer, ITK-SNAP, text)",
    )
    add(
        "--fail-on-quality",
        action="store_true",
        help="exit with code 3 where a warning makes a result doubtful; it is written all the same",
    )
    add_threads(parser)


def add_bids_names(parser: argparse.ArgumentParser) -> None:
    """Declare names of BIDS for the results."""
    parser.add_argument(
        "--bids-names",
        action="store_true",
        help="names and sidecars of BIDS derivatives, DIR being the dataset: "
        "sub-X/anat/sub-X_space-MNI_T1w.nii.gz, sub-X_from-T1w_to-MNI_mode-image_xfm.nii.gz",
    )


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare that a command prints JSON, or writes it."""
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help=f"print {what} to stdout instead of a table, or write it into a file",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Declare how much of the CPU a command may take."""
    text = "CPU threads (default: all cores)"
    parser.add_argument("--threads", type=_threads, metavar="N", help=text)


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Declare which pictures are made of a registered pair."""
    add = parser.add_argument_group(
        "pictures", f"they need the extra: {install_command('report')}"
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


def run(args: argparse.Namespace) -> int:
    """Register, save, print."""
    from ..pair import Pair, names_of, register_pair
    from ..results.outputs import check_file, check_outputs, json_text
    from ..system.staging import staged_file

    settings = settings_of(args)
    pair = Pair(
        args.moving.name,
        **{role: getattr(args, role) for role in FILES},
        also=tuple(args.also),
        also_labels=tuple(args.also_labels),
    )
    names = names_of(pair, settings, args.out_dir)
    check_outputs(args.out_dir, args.force, names)
    to_file = args.json and args.json != STDOUT
    if to_file:
        check_file(args.json, args.force)
    settings.check()
    register = settings.registration(wait=False)
    result, extras = register_pair(register, pair, settings, names)
    result.save(args.out_dir, args.force, extras, names)
    if to_file:
        with staged_file(args.json) as path:
            path.write_text(json_text(result.metrics), encoding="utf-8")
    as_json = args.json == STDOUT
    metrics = result.metrics
    print(json_text(metrics, None).rstrip() if as_json else _table(metrics, args.out_dir))
    return DOUBTFUL if args.fail_on_quality and metrics["warnings"] else 0


def settings_of(args: argparse.Namespace) -> Settings:
    """What `infer` and `cohort` are asked for.

    Paths are absolute, because workers of a cluster have working folders of their own.
    """
    from ..pair import Settings
    from ..report.pictures import Pictures

    grid = args.output_grid
    return Settings(
        model=_model(args.model),
        refine=args.refine,
        backend=args.backend,
        precision=args.precision,
        threads=args.threads,
        affine=args.affine or not args.no_affine,
        inverse=args.inverse,
        itk_composite=args.itk_composite,
        initial_format=args.initial_transform_format,
        output_grid=grid if grid in ("fixed", "moving") else str(Path(grid).absolute()),
        interpolation=args.interpolation,
        surfaces=not args.no_surface_distances,
        label_names=args.label_names and args.label_names.absolute(),
        pictures=Pictures(args.report or args.report_3d, args.report_3d, args.figures),
        bids_names=args.bids_names,
        apply_to_all=args.apply_to_all,
        reference_volume=args.reference_volume,
        analyze_orientation=args.analyze_orientation,
    )


def _model(name: str | None) -> Path | str | None:
    if name in (None, AUTO_MODEL):
        return None
    return name if name == NO_MODEL else bundle_path(name).absolute()


def _iterations(text: str) -> int:
    return 0 if text == "off" else _whole(text, 0, MOST_ITERATIONS)


def _volume_number(text: str) -> int:
    return _whole(text, 0)


def positive(text: str) -> int:
    """A number of things, at least one."""
    return _whole(text, 1)


def _threads(text: str) -> int:
    return _whole(text, 1, MOST_THREADS)


def _whole(text: str, least: int, most: int = 10**6) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {least} to {most}, got {text[:40]}"
        )
    return int(text)


def _table(metrics: dict[str, Any], out_dir: Path) -> str:
    rows = {"": {stage: stage for stage in STAGES}, "NCC": metrics["ncc"]}
    for key, title in MEANS:
        if key in metrics:
            rows[title] = {stage: entry["mean"] for stage, entry in metrics[key].items()}
    lines = [
        f"{title:<16}" + "".join(f"{_cell(row.get(stage)):>9}" for stage in STAGES)
        for title, row in rows.items()
    ]
    growth = (metrics["network_grid"] or {}).get("spacing_growth", 1)
    if growth > 1:
        lines.append(f"network grid {growth:.2f} times coarser than the model's, to fit the image")
    lines += inverse_lines(metrics.get("inverse_consistency_mm", {}))
    if reason := metrics["quality"]["choice"]["reason"]:
        lines.append(reason)
    lines += [f"warning: {warning}" for warning in metrics["warnings"]]
    lines.append(f"quality score    {metrics['quality']['score']:.2f} (1 is best)")
    lines.append(f"folded voxels    {metrics['nonpositive_jacobian_percent']:.4f} %")
    volume = metrics["nondiffeomorphic_volume_percent"]
    lines.append(f"folded volume    {volume:.4f} % (digital diffeomorphism)")
    lines.append(f"{sum(metrics['seconds'].values()):.1f} s; results in {out_dir}")
    return "\n".join(lines)


def inverse_lines(consistency_mm: dict[str, dict[str, float] | None]) -> Iterator[str]:
    """What there and back costs a point of either image, for people."""
    for way, error in consistency_mm.items():
        if error:
            title = way.replace("_", " ")  # from moving, from fixed
            yield (
                f"there and back, {title}: {error['mean']:.3f} mm off on average, "
                f"{error['p99']:.3f} mm at the 99th percentile, {error['max']:.3f} mm at most"
            )


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3f}"

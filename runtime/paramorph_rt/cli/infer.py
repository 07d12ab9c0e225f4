"""`paramorph-rt infer`: register one pair of volumes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metrics.definitions import STAGES
from ..request import Inputs, Options
from . import sign
from .arguments import STDOUT, add_fields, add_json, inputs_of, options_of
from .messages import DOUBTFUL

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of the printed table, over labels.
MEANS = {
    "dice": "mean Dice",
    "assd_mm": "mean ASSD (mm)",
    "hd95_mm": "mean HD95 (mm)",
    "nsd": "mean NSD",
}

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
    images = ("moving", "fixed")
    add_fields(parser, Inputs, images)
    add = parser.add_argument
    add("-o", "--out-dir", type=Path, required=True, metavar="DIR", help="folder for the results")
    add_fields(parser, Inputs, but=images)
    add("--force", action="store_true", help="replace the results of an earlier run")
    add_json(parser, "metrics.json")
    add_fields(parser, Options)
    sign.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Register, save, print."""
    from ..loaded import loaded
    from ..pair import check, names_of, register_pair
    from ..results.json_files import json_text
    from ..results.outputs import check_file, check_outputs
    from ..system.staging import staged_file

    inputs, options = inputs_of(args), options_of(args)
    names = names_of(inputs, options, args.out_dir)
    read = [*inputs.files().values(), *options.files().values()]
    check_outputs(args.out_dir, args.force, names, read)
    to_file = args.json and args.json != STDOUT
    if to_file:
        check_file(args.json, args.force, inputs=read)
    check(options)
    register = loaded(options, wait=False)
    result, extras = register_pair(register, inputs, options, names)
    result.save(args.out_dir, args.force, extras, names)
    if to_file:
        with staged_file(args.json) as path:
            path.write_text(json_text(result.metrics), encoding="utf-8")
    as_json = args.json == STDOUT
    metrics = result.metrics
    print(json_text(metrics, None).rstrip() if as_json else _table(metrics, args.out_dir))
    return DOUBTFUL if options.fail_on_quality and metrics["warnings"] else 0


def _table(metrics: dict[str, Any], out_dir: Path) -> str:
    rows = {"": {stage: stage for stage in STAGES}, "NCC": metrics["ncc"]}
    for key, title in MEANS.items():
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

"""`paramorph-rt infer`: register one pair of volumes."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STAGES = ("before", "affine", "after")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "infer",
        help="register one moving volume to one fixed volume",
        description="Register a moving to a fixed volume. All results lie on the fixed image's "
        "own grid: warped.nii.gz, displacement.nii.gz (ITK convention, complete), affine.tfm, "
        "warped_labels.nii.gz and metrics.json.",
    )
    add = parser.add_argument
    add("--moving", type=Path, required=True, metavar="NII", help="volume to be warped")
    add("--fixed", type=Path, required=True, metavar="NII", help="volume to match")
    add("--out-dir", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--model", type=Path, metavar="BUNDLE", help="model bundle (default: the shipped one)")
    add("--moving-labels", type=Path, metavar="NII", help="label map of the moving volume")
    add("--fixed-labels", type=Path, metavar="NII", help="label map of the fixed volume")
    add("--no-affine", action="store_true", help="the pair is affinely aligned already")
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
        result = Registration(args.model, args.threads)(
            args.moving, args.fixed, args.moving_labels, args.fixed_labels, not args.no_affine
        )
        result.save(args.out_dir, args.force)
    print(json.dumps(result.metrics) if args.json else _table(result.metrics, args.out_dir))
    return 0


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
    lines.append(f"folded voxels    {metrics['nonpositive_jacobian_percent']:.4f} %")
    lines.append(f"{sum(metrics['seconds'].values()):.1f} s; results in {out_dir}")
    return "\n".join(lines)


def _cell(value: float | str | None) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else f"{value:.3f}"

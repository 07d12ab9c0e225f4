"""Export trained weights to a bundle: `python export/to_onnx.py --help`."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from paramorph_rt.bundle import PRECISIONS
from paramorph_rt.errors import exit_code
from paramorph_rt.refinement.settings import DEFAULT_ITERATIONS


def parser() -> argparse.ArgumentParser:  # a list: one option after the other
    p = argparse.ArgumentParser(
        description="Trace trained weights to ONNX, verify the files against PyTorch and write a "
        "bundle that paramorph-rt runs."
    )
    p.add_argument("--weights", type=Path, help=".safetensors of a registration network")
    p.add_argument(
        "--features",
        type=Path,
        help="weights of a feature network, for the refinement; alone, they make a model of which "
        "the refinement finds the whole field",
    )
    p.add_argument(
        "--refined",
        type=int,
        nargs="?",
        const=DEFAULT_ITERATIONS,
        metavar="N",
        help="make one network of --features and the refinement by them, with N iterations at 1.5 "
        "mm (%(const)s), for GPUs: from two volumes to the refined displacement",
    )
    p.add_argument("--out-dir", type=Path, required=True, help="the bundle's folder")
    p.add_argument(
        "--card",
        type=Path,
        metavar="FILE",
        help="model card NAME.md: the bundle gets its NAME, and `paramorph-rt models` shows its "
        "licence, limits and results",
    )
    p.add_argument(
        "--domain",
        type=Path,
        metavar="BUNDLE",
        help="take over from this bundle what images the model was made for (describe_domain.py)",
    )
    p.add_argument(
        "--shape",
        type=int,
        nargs=3,
        action="append",
        metavar=("D", "H", "W"),
        help="network grid, multiples of 32; may be repeated: each image takes the smallest that "
        "it fits into (default: the one the weights were trained on)",
    )
    p.add_argument(
        "--precision",
        nargs="+",
        default=["fp32"],
        choices=PRECISIONS,
        help="of the graphs; fp32 is always written, fp16 and bf16 are for GPUs",
    )
    p.add_argument(
        "--fp32-for-gpus",
        action="store_true",
        help="write a float32 graph for GPUs too, for engines of --precision fp32",
    )
    p.add_argument(
        "--verify-on",
        type=Path,
        metavar="DIR",
        help="measure fp16 and bf16 on these labelled volumes too (NAME_*.nii.gz with "
        "NAME_labels.nii.gz; default: on random ones alone)",
    )
    p.add_argument("--force", action="store_true", help="replace an existing bundle")
    return p


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a wrong option do not wait for torch.
    from paramorph_export.bundle import Graphs, write_bundle
    from paramorph_export.errors import ExportError

    halves = [p for p in dict.fromkeys(args.precision) if p != "fp32"]
    refined = args.refined is not None
    if refined and (args.weights or not args.features or args.shape or args.fp32_for_gpus):
        raise ExportError(
            "--refined: expected --features, but no --weights, --shape or --fp32-for-gpus, got "
            "others; leave these out."
        )
    if args.features and not args.weights and not refined and (halves or args.fp32_for_gpus):
        raise ExportError(
            "expected --weights of a registration network, or --refined, for graphs for GPUs, got "
            "--features alone, which run on the CPU; leave --precision and --fp32-for-gpus out."
        )
    shapes = [tuple(shape) for shape in args.shape or ()]
    manifest = write_bundle(
        args.out_dir,
        args.weights,
        Graphs(shapes, halves, args.fp32_for_gpus, args.verify_on),
        features=args.features,
        refined=args.refined,
        card=args.card,
        domain=args.domain,
        force=args.force,
    )
    print(
        f"{args.out_dir}: {manifest['name']}, exported and verified in "
        f"{manifest['provenance']['export_seconds']} s"
    )
    for entry in manifest.get("features", {}).get("networks", []):
        print(_summary(entry, "features differ from {reference} by {max_difference:.1e} at most"))
    for entry in manifest["networks"]:
        says = (
            "displacement differs from {reference} by {mean_difference_vox:.1e} voxel on average, "
            "{max_difference_vox:.1e} at most"
        )
        print(_summary(entry, says))


def _summary(entry: dict[str, Any], says: str) -> str:
    """A line about a graph: `says` with what was measured of it."""
    shape = "×".join(map(str, entry["shape"]))
    what = f"{entry['file']}: {entry['precision']} at {shape}, {entry['nodes']} nodes; "
    return what + says.format(**entry["verification"])


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    # Halves take minutes; these lines show the progress.
    progress, handler = logging.getLogger("paramorph_export"), logging.StreamHandler()
    progress.setLevel(logging.INFO)
    progress.addHandler(handler)
    try:
        return exit_code("to_onnx", lambda: run(args), extra="export")
    finally:
        progress.removeHandler(handler)


if __name__ == "__main__":
    sys.exit(main())

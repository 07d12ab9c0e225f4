"""Export trained weights to a bundle: `python export/to_onnx.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from paramorph_rt.errors import exit_code


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Trace trained weights to ONNX, verify the file against PyTorch and write a "
        "bundle that paramorph-rt runs."
    )
    p.add_argument("--weights", type=Path, required=True, help=".safetensors of this toolkit")
    p.add_argument("--out-dir", type=Path, required=True, help="the bundle's folder")
    p.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("D", "H", "W"),
        help="network grid, multiples of 32 (default: the one the weights were trained on)",
    )
    p.add_argument("--precision", default="fp32", choices=["fp32"], help="of the graph")
    p.add_argument("--force", action="store_true", help="replace an existing bundle")
    return p


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a wrong option do not wait for torch.
    from paramorph.checkpoint import load_weights
    from paramorph_export.bundle import check_replaceable, write_bundle

    check_replaceable(args.out_dir, args.force)
    network, info = load_weights(args.weights)
    shape = tuple(args.shape) if args.shape else info.shape
    manifest = write_bundle(args.out_dir, network, info, args.weights, shape, args.force)
    (entry,) = manifest["networks"]
    measured = entry["verification"]
    print(
        f"{args.out_dir}: {manifest['name']} at {'×'.join(map(str, shape))}, "
        f"{entry['nodes']} nodes, traced in {manifest['provenance']['export_seconds']} s; "
        f"ONNX Runtime differs from PyTorch by at most {measured['max_difference_vox']:.1e} voxel "
        f"(displacements up to {measured['max_displacement_vox']:.1f})"
    )


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("to_onnx", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

"""Import a checkpoint of the ParaMorph reference: `python models/import_checkpoint.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from paramorph_rt.errors import exit_code


def parser() -> argparse.ArgumentParser:  # a list: one option after the other
    p = argparse.ArgumentParser(
        description="Turn a checkpoint of the ParaMorph reference code into weights of this "
        "toolkit, with everything recorded that they need to mean the same."
    )
    p.add_argument("checkpoint", type=Path, help="the reference's .pth.tar or .pth")
    p.add_argument("--out", type=Path, required=True, help="WEIGHTS.safetensors to write")
    p.add_argument(
        "--window",
        type=int,
        nargs=3,
        required=True,
        metavar=("D", "H", "W"),
        help="attention window it was trained with, e.g. 5 5 3 (5 6 5 for LPBA40)",
    )
    p.add_argument(
        "--fusion",
        choices=["cross", "post"],
        default="cross",
        help="fusion variant it was trained with (default cross, as the reference trains)",
    )
    p.add_argument(
        "--shape",
        type=int,
        nargs=3,
        default=[160, 160, 96],
        metavar=("D", "H", "W"),
        help="volume size it was trained on, voxels (default 160 160 96)",
    )
    p.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        default=[1.0, 1.0, 1.0],
        metavar=("D", "H", "W"),
        help="voxel size it was trained on, mm; a checkpoint does not say (default 1 1 1)",
    )
    p.add_argument(
        "--orientation",
        default="RAS",
        help="anatomical directions of the axes D H W it was trained on; a checkpoint does not "
        "tell (default RAS; SAR for volumes read with SimpleITK from RAS files)",
    )
    p.add_argument("--name", help="what to call the weights (default: the file's name)")
    p.add_argument("--force", action="store_true", help="replace an existing output")
    return p


def run(args: argparse.Namespace) -> None:
    from paramorph.checkpoint import WeightsInfo, save_weights
    from paramorph.config import CONFIGS, check_shape
    from paramorph.reference import convert_reference_state, read_reference_checkpoint
    from paramorph_rt.results.outputs import check_file
    from paramorph_rt.system.files import sha256_of

    check_file(args.out, args.force, (".safetensors",))
    shape = check_shape(tuple(args.shape))
    # The reference samples and puts windows back in its own way, and its weights rely on both.
    config = CONFIGS["paramorph"].with_options(
        window=tuple(args.window),
        fusion=args.fusion,
        sampling="reference",
        window_return="reference",
    )
    state = convert_reference_state(
        read_reference_checkpoint(args.checkpoint), config, args.checkpoint.name
    )
    info = WeightsInfo(
        name=args.name or args.checkpoint.name.split(".")[0],
        network=config,
        shape=shape,
        spacing_mm=tuple(args.spacing),
        orientation=args.orientation,
        provenance={
            "imported_from": args.checkpoint.name,
            "imported_sha256": sha256_of(args.checkpoint),
        },
    )
    save_weights(args.out, state, info)
    millions = sum(t.numel() for t in state.values()) / 1e6
    print(f"{args.out}: {millions:.2f} M parameters, fusion {args.fusion}, window {args.window}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("import_checkpoint", lambda: run(args), extra="train")


if __name__ == "__main__":
    sys.exit(main())

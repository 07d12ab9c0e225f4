"""Say in a bundle what images its model was made for: `python export/describe_domain.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from paramorph_rt.errors import exit_code


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Describe images like those of the training (extent, voxel size, contrast) in "
        "the manifest of a bundle, so that the runtime warns of others, or does without the model."
    )
    p.add_argument("--bundle", type=Path, required=True, help="is changed in place")
    p.add_argument("--images", type=Path, nargs="+", required=True, metavar="FILE")
    p.add_argument("--of", required=True, help='in words: "skull-stripped adult T1 brains"')
    p.add_argument(
        "--least-likeness",
        type=float,
        default=0.5,
        metavar="R",
        help="least correlation of an image's map of ranks with their mean map (default: 0.5)",
    )
    p.add_argument(
        "--volume-ml",
        type=float,
        nargs=2,
        metavar=("LEAST", "MOST"),
        help="of the foreground, where a model was trained on more sizes than the images have",
    )
    p.add_argument("--any-contrast", action="store_true", help="no map: contrasts are not compared")
    return p


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a wrong option do not wait for what reads images.
    from paramorph_export.domain import add_domain, describe

    least = None if args.any_contrast else args.least_likeness
    entry, ranks = describe(args.images, args.of, least, args.volume_ml)
    add_domain(args.bundle, entry, ranks)
    print(f"{args.bundle}: {', '.join(f'{key} {value}' for key, value in entry.items())}")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("describe_domain", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

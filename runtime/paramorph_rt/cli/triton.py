"""`paramorph-rt triton`: write a bundle as a model repository for NVIDIA Triton."""

from __future__ import annotations

import argparse
from pathlib import Path

from .sign import add_option

_EPILOG = """
Each network of the bundle becomes a model for Triton's backend onnxruntime, and its TensorRT
engines models for the backend tensorrt. Each model's folder has a README.md with a client.

example:
  paramorph-rt triton brain-t1-small --out-dir REPOSITORY
  tritonserver --model-repository=REPOSITORY
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "triton",
        help="write a model repository for NVIDIA Triton",
        description="Write a bundle's networks and engines as models of NVIDIA Triton Inference "
        "Server. Models of other names in the repository stay.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="name of a shipped model, or folder of a bundle (default: the first shipped one)",
    )
    add(
        "-o",
        "--out-dir",
        type=Path,
        required=True,
        metavar="REPO",
        help="folder of the model repository",
    )
    add("--force", action="store_true", help="replace models of the same names")
    add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the models and name them."""
    from ..bundle import bundle_path, load_bundle
    from ..triton import write_repository

    bundle = load_bundle(bundle_path(args.model))
    for model in write_repository(bundle, args.out_dir, args.force):
        print(f"wrote {args.out_dir / model.name}")
    return 0

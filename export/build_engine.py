"""Add TensorRT engines to a bundle: `python export/build_engine.py --help`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from paramorph_rt.bundle import PRECISIONS
from paramorph_rt.errors import exit_code


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Build engines of a bundle's networks and add them to it. TensorRT for RTX "
        "(its extra: tensorrt-rtx) needs no GPU; TensorRT needs the target's.",
        epilog="Example: python export/build_engine.py --bundle BUNDLE --target rtx3080",
    )
    p.add_argument("--bundle", type=Path, required=True, help="that export/to_onnx.py wrote")
    p.add_argument(
        "--target",
        action="append",
        metavar="CARD",
        help="rtx3080, a compute capability such as sm86 or sm89, or portable: one engine of "
        "TensorRT for RTX for all its cards from 8.0 on; may be repeated (default: rtx3080)",
    )
    p.add_argument(
        "--flavour",
        choices=("auto", "tensorrt-rtx", "tensorrt"),
        default="auto",
        help="library (default: the first that is installed, in this order)",
    )
    p.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp16",
        help="of the networks to build from (default: %(default)s)",
    )
    p.add_argument(
        "--plugin",
        type=Path,
        metavar="LIBRARY",
        help="GridSample3D for TensorRT before 11.2 (export/build_plugin.py); goes into the bundle",
    )
    p.add_argument(
        "--time-limit", type=float, default=900, metavar="S", help="of a build (%(default)g)"
    )
    return p


def run(args: argparse.Namespace) -> None:
    from paramorph_export.engine import add_engines

    entries = add_engines(
        args.bundle,
        args.target or ["rtx3080"],
        args.flavour,
        args.precision,
        args.plugin,
        args.time_limit,
    )
    for entry in entries:
        size = (args.bundle / entry["file"]).stat().st_size
        memory = entry["device_memory_bytes"]
        print(
            f"{args.bundle / entry['file']}: {entry['flavour']} {entry['version']}, compute "
            f"capability {entry['compute_capability']}, {entry['precision']}, {size / 1e6:.0f} MB, "
            f"built in {entry['build_seconds']} s"
            + (f"; {memory / 1e6:.0f} MB of activations" if memory else "")
        )


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("build_engine", lambda: run(args), extra="export")


if __name__ == "__main__":
    sys.exit(main())

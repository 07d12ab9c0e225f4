"""Prepare the subjects of a training beforehand: `python models/prepare.py --help`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from paramorph_rt.errors import exit_code, imports_of

with imports_of("prepare", "train"):
    from paramorph.data import load_split, prepare_subjects


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Check, align and resample all subjects of a configuration onto the network "
        "grid, in parallel. A training then only reads them; after a kill, start again to go on."
    )
    p.add_argument(
        "--config", type=Path, metavar="FILE", required=True, help="TOML file of a training"
    )
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.OPTION=VALUE",
        help="stronger than the file; may be repeated",
    )
    p.add_argument("--out", metavar="DIR", help="run folder (short for --set run.out=…)")
    return p


def run(args: argparse.Namespace) -> None:
    from paramorph.run_config import load_run_config  # workers import this script, not all of it

    out = [f"run.out={json.dumps(args.out)}"] if args.out else []
    config = load_run_config(args.config, [*args.set, *out])
    split, spec, cache = load_split(config.data), config.input_spec, config.cache
    started = time.perf_counter()
    prepare_subjects(
        [*split.training, *split.validation],
        split.reference,
        spec,
        cache,
        config.data.workers,
        affine=config.data.affine,
    )
    seconds = time.perf_counter() - started
    grid = spec.grid
    print(
        f"{len(split.training)} subjects to train on and {len(split.validation)} to validate on, "
        f"ready in {seconds:.1f} s\n"
        f"{'aligned to' if config.data.affine else 'grid of'}: {split.reference.name}\n"
        f"grid: {_by(grid.shape)} voxels of {_by(grid.spacing_mm)} mm, {grid.orientation}\n"
        f"cache: {cache}"
    )


def _by(numbers: tuple[float, ...]) -> str:
    return " × ".join(f"{n:g}" for n in numbers)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("prepare", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

"""Prepare the subjects of a training beforehand: `python models/prepare.py --help`."""

from __future__ import annotations

import argparse
import sys
import time

from paramorph_rt.errors import exit_code, imports_of

with imports_of("prepare", "train"):
    from paramorph.data import load_split
    from paramorph.options import add_config_options, overrides_of


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description="Check, align and resample all subjects of a configuration onto the network "
        "grid, in parallel. A training then only reads them; after a kill, start again to go on."
    )
    add_config_options(p, training=False)
    return p


def run(args: argparse.Namespace) -> None:
    from paramorph.run_config import load_run_config  # workers import this script, not all of it

    config = load_run_config(args.config, overrides_of(args))
    started = time.perf_counter()
    training, validation = config.prepared()
    seconds = time.perf_counter() - started
    grid, reference = config.grid, load_split(config.data).reference
    print(
        f"{len(training)} subjects to train on and {len(validation)} to validate on, "
        f"ready in {seconds:.1f} s\n"
        f"{'aligned to' if config.data.affine else 'grid of'}: {reference.name}\n"
        f"grid: {_by(grid.shape)} voxels of {_by(grid.spacing_mm)} mm, {grid.orientation}\n"
        f"cache: {config.run.cache(config.data)}"
    )


def _by(numbers: tuple[float, ...]) -> str:
    return " × ".join(f"{n:g}" for n in numbers)


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("prepare", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

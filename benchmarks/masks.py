"""What brain masks do for heads with skull, whose model was trained on brains alone.

Pairs of whole heads with label maps of their brains are registered as they are, and with masks made
of the labels. Judged by Dice of the labels, as similarity within masks and without cannot be
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bundles import add_model_option, single_bundle
from pairs import BenchmarkError
from paramorph_rt import Registration, Volume, load_labels, load_volume
from paramorph_rt.errors import exit_code
from record import weights_sha256, write_page, write_result
from tables import markdown_table, origin

COLUMNS = (
    ("pair", "pair", ""),
    ("masks", "masks", ""),
    ("Dice before", "before", ".3f"),
    ("affine", "affine", ".3f"),
    ("after", "after", ".3f"),
    ("folds, %", "folded_percent", ".3f"),
    ("spacing growth", "spacing_growth", ".2f"),
)


def mask_of(labels: Volume) -> Volume:
    """Where there is any label."""
    return replace(labels, data=(labels.data != 0).astype(np.uint8), name=f"mask of {labels.name}")


def measure(register: Registration, moving: str, fixed: str, folder: Path, masks: bool) -> dict:
    """Register one head to another, by their names."""
    names = moving, fixed
    images = [load_volume(folder / f"{name}_t1.nii.gz") for name in names]
    labels = [load_labels(folder / f"{name}_labels.nii.gz") for name in names]
    inside = [mask_of(each) if masks else None for each in labels]
    found = register(
        *(*images, *labels), moving_mask=inside[0], fixed_mask=inside[1], surfaces=False
    ).metrics
    return {
        "pair": f"{moving} → {fixed}",
        "masks": "of the brains" if masks else "none",
        **{stage: entry["mean"] for stage, entry in found["dice"].items()},
        "folded_percent": found["nonpositive_jacobian_percent"],
        "spacing_growth": found["network_grid"]["spacing_growth"],
    }


def run(args: argparse.Namespace) -> None:
    names = sorted(path.name.removesuffix("_t1.nii.gz") for path in args.dir.glob("*_t1.nii.gz"))
    if len(names) < 2:
        raise BenchmarkError(f"{args.dir}: expected two *_t1.nii.gz or more, got {len(names)}.")
    _, bundle = single_bundle(args.model)
    register = Registration(bundle, args.threads)
    pairs = list(pairwise([*names, names[0]]))
    rows: list[dict[str, Any]] = [
        measure(register, *pair, args.dir, masks) for masks in (False, True) for pair in pairs
    ]
    numbers = [key for _, key, spec in COLUMNS if spec]
    for kind in dict.fromkeys(row["masks"] for row in rows):
        of_kind = [row for row in rows if row["masks"] == kind]
        mean = {key: statistics.mean(row[key] for row in of_kind) for key in numbers}
        rows.append({"pair": "mean", "masks": kind, **mean})
    path = write_result(args.name, {"weights_sha256": weights_sha256(bundle), "rows": rows})
    write_page(path, page(json.loads(path.read_text(encoding="utf-8"))))


def page(result: dict[str, Any]) -> str:
    """What was measured, for people."""
    return (
        "# Heads with skull, without and with brain masks\n\n"
        f"{markdown_table(result['rows'], COLUMNS)}\n{origin(result)}\n"
    )


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("dir", type=Path, metavar="DIR", help="NAME_t1.nii.gz with NAME_labels.nii.gz")
    add_model_option(p)
    cores = len(os.sched_getaffinity(0))
    p.add_argument("--threads", type=int, default=cores, help="default: all cores")
    p.add_argument("--name", default="masks", help="of the result files (default: %(default)s)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return exit_code("masks", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

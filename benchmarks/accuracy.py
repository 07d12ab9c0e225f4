"""Whole registrations of labelled volumes, each to the next: overlap, distance, folds, seconds.

Everything is measured on the fixed image's own grid, through files, as a user would.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import pairwise
from pathlib import Path

from paramorph.data import find_subjects
from paramorph_rt import Registration
from record import write_result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="NAME_*.nii.gz with NAME_labels.nii.gz")
    parser.add_argument("--model", type=Path, help="bundle (default: the shipped one)")
    parser.add_argument("--name", default="brain-t1-validation", help="of the result file")
    args = parser.parse_args()

    registration = Registration(args.model)
    subjects = [s for s in find_subjects(args.folder) if s.labels is not None]
    rows = []
    for moving, fixed in pairwise([*subjects, subjects[0]]):
        found = registration(moving.image, fixed.image, moving.labels, fixed.labels).metrics
        rows.append(
            {
                "pair": f"{moving.name} → {fixed.name}",
                "labels": len(found["dice"]["after"]["labels"]),
                "dice": {stage: entry["mean"] for stage, entry in found["dice"].items()},
                "assd_mm": {stage: entry["mean"] for stage, entry in found["assd_mm"].items()},
                "nonpositive_jacobian_percent": found["nonpositive_jacobian_percent"],
                "seconds": found["seconds"],
            }
        )
        print(rows[-1], flush=True)
    mean = {
        "dice_affine": statistics.mean(row["dice"]["affine"] for row in rows),
        "dice_after": statistics.mean(row["dice"]["after"] for row in rows),
        "assd_after_mm": statistics.mean(row["assd_mm"]["after"] for row in rows),
        "nonpositive_jacobian_percent": statistics.mean(
            row["nonpositive_jacobian_percent"] for row in rows
        ),
        "network_seconds": statistics.median(row["seconds"]["network"] for row in rows),
        "total_seconds": statistics.median(sum(row["seconds"].values()) for row in rows),
    }
    path = write_result(
        f"accuracy-{args.name}",
        {
            "model": registration.bundle.name,
            "weights_sha256": registration.bundle.manifest["provenance"]["weights_sha256"],
            "mean": mean,
            "pairs": rows,
        },
    )
    print(mean)
    print(path)


if __name__ == "__main__":
    main()

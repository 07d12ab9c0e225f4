"""How far one registration differs between runs, numbers of threads, and engines.

Each run is a process of its own, `paramorph-rt infer`, of the folder's first pair.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmark import ENGINES, FOLDER, MODEL, THREADS, Benchmark
from isolated import run_measured
from jobs import FIELD, infer_command
from pairs import labelled_pairs
from paramorph_rt.bundle import bundle_path, load_bundle
from paramorph_rt.transforms.itk import read_displacement
from record import Row, succeeded, weights_sha256
from tables import page_of_rows

RUNS = 2
COLUMNS = (
    ("engine", "engine", ""),
    ("threads", "threads", ""),
    ("runs with equal bits", "equal", ""),
    ("field", "bits", ""),
    ("mean, mm", "mean_mm", ".4f"),
    ("99.9th percentile, mm", "p999_mm", ".4f"),
    ("most, mm", "max_mm", ".3f"),
)


def field_of(images: Mapping[str, Path], engine: str, threads: int, model: Path) -> np.ndarray:
    """The displacement in mm that a process of its own finds."""
    with TemporaryDirectory() as folder:
        command = infer_command(images, folder, engine, model=model)
        succeeded(run_measured(command, threads, timeout_s=1800))
        return read_displacement(Path(folder) / FIELD).vectors_mm


def run(args: argparse.Namespace) -> Row:
    """Compare every field with the first."""
    bundle = load_bundle(bundle_path(args.model))
    (case,) = labelled_pairs(args.folder, 1)
    images = {"moving": case.moving.image, "fixed": case.fixed.image}
    rows: list[Row] = []
    first = None
    for engine in args.engines.split(","):
        for threads in dict.fromkeys((1, args.threads)):
            runs = [field_of(images, engine, threads, bundle.folder) for _ in range(RUNS)]
            first = runs[0] if first is None else first
            distances = np.linalg.norm(runs[0] - first, axis=-1)
            rows.append(
                {
                    "engine": engine,
                    "threads": threads,
                    "equal": f"{sum(np.array_equal(each, runs[0]) for each in runs)} of {RUNS}",
                    "bits": hashlib.sha256(runs[0].tobytes()).hexdigest()[:8],
                    "mean_mm": float(distances.mean(dtype=np.float64)),
                    "p999_mm": float(np.percentile(distances, 99.9)),
                    "max_mm": float(distances.max()),
                }
            )
    return {"weights_sha256": weights_sha256(bundle), "pair": case.name, "rows": rows}


BODY = page_of_rows(
    "The pair {pair}, complete fields on the fixed image's grid. *Field* is the beginning of its "
    "SHA-256; distances are from the field of the first row.",
    COLUMNS,
)
BENCHMARK = Benchmark(run, BODY, (FOLDER, MODEL, THREADS, ENGINES))

if __name__ == "__main__":
    BENCHMARK.exit()

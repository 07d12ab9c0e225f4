"""What the report and the figures of one labelled pair cost: seconds, bytes and memory."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmark import FOLDER, Benchmark
from costs import repeated, resident_mb
from pairs import labelled_pairs
from paramorph_rt import Registration
from paramorph_rt.report import write_figures, write_report
from record import Row
from tables import page_of_rows

RUNS = 5
PICTURES = {
    "report": write_report,
    "report with 3-D view": partial(write_report, solid=True),
    "figures": write_figures,
}
COLUMNS = (
    ("what", "what", ""),
    ("seconds", "median_seconds", ".2f"),
    ("CPU, s", "median_cpu_seconds", ".2f"),
    ("kB", "kilobytes", ".0f"),
    ("resident before, MB", "resident_before_mb", ".0f"),
    ("after", "resident_after_mb", ".0f"),
)


def measure(write: Callable[[Path], None], path: Path) -> Row:
    """Repeat one picture; other processes lengthen the wall time, not that of the CPU."""
    write(path)  # the first run loads fonts and templates
    before = resident_mb()
    costs = repeated(lambda: write(path), RUNS)
    files = [path] if path.is_file() else path.iterdir()
    return {
        **costs,
        "kilobytes": sum(file.stat().st_size for file in files) / 1e3,
        "resident_before_mb": before,
        "resident_after_mb": resident_mb(),
    }


def run(args: argparse.Namespace) -> Row:
    """Register the first pair, draw it again and again."""
    (case,) = labelled_pairs(args.folder, 1)
    inputs = vars(case.load())
    result = Registration()(*inputs.values())
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"what": what} | measure(partial(write, result=result, **inputs), Path(folder) / what)
            for what, write in PICTURES.items()
        ]
    return {
        "moving": case.moving.name,
        "fixed": case.fixed.name,
        "voxels": [list(inputs[side].grid.shape) for side in ("moving", "fixed")],
        "labels": len(result.metrics["dice"]["after"]["labels"]),
        "runs": RUNS,
        "rows": rows,
    }


BODY = page_of_rows("{moving} → {fixed}, {labels} labels; medians of {runs}.", COLUMNS)
PACKAGES = ("Jinja2", "pillow", "contourpy", "matplotlib")
BENCHMARK = Benchmark(run, BODY, (FOLDER,), packages=PACKAGES)

if __name__ == "__main__":
    BENCHMARK.exit()

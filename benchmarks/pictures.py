"""What the report and the figures of one labelled pair cost: seconds, bytes and memory."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmark import FOLDER, Benchmark
from costs import repeated, resident_mb
from pairs import load_pair
from paramorph.data import labelled_pairs
from paramorph_rt import Registration
from paramorph_rt.report import write_figures, write_report
from record import Result, Row
from tables import markdown_table

RUNS = 5
PICTURES = {
    "report": write_report,
    "report with 3-D view": partial(write_report, solid=True),
    "figures": write_figures,
}
COLUMNS = (
    ("what", "what", ""),
    ("seconds", "median_seconds", ".2f"),
    ("CPU, s", "median_processor_seconds", ".2f"),
    ("kB", "kilobytes", ".0f"),
    ("resident before, MiB", "before", ".0f"),
    ("after", "after", ".0f"),
)


def measure(write: Callable[[Path], None], path: Path) -> Row:
    """Repeat one picture; other processes lengthen the wall time, not the processor's."""
    write(path)  # the first run loads fonts and templates
    resident = [_resident_mib()]

    def again() -> None:
        write(path)
        resident.append(_resident_mib())

    costs = repeated(again, RUNS)
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {
        "median_seconds": costs["median_seconds"],
        "median_processor_seconds": costs["median_cpu_seconds"],
        "bytes": {file.name: file.stat().st_size for file in files},
        "resident_mib_before_and_after_each": resident,
    }


def _resident_mib() -> float:
    return round(resident_mb() * 1e6 / 2**20, 1)


def run(args: argparse.Namespace) -> Row:
    """Register the first pair, draw it again and again."""
    moving, fixed = labelled_pairs(args.folder)[0]
    inputs = vars(load_pair(moving, fixed))
    result = Registration()(*inputs.values())
    content: Row = {
        "moving": moving.name,
        "fixed": fixed.name,
        "voxels": [list(inputs[side].grid.shape) for side in ("moving", "fixed")],
        "labels": len(result.metrics["dice"]["after"]["labels"]),
        "runs": RUNS,
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, write in PICTURES.items():
            drawn = partial(write, result=result, **inputs)
            content[name] = measure(drawn, Path(folder) / name)
    return content


def body(result: Result) -> str:
    """The text of a result's page."""
    rows = []
    for name in PICTURES:
        entry = result[name]
        before, *_, after = entry["resident_mib_before_and_after_each"]
        size = sum(entry["bytes"].values()) / 1e3
        rows.append({"what": name, **entry, "kilobytes": size, "before": before, "after": after})
    return (
        f"{result['moving']} → {result['fixed']}, {result['labels']} labels; medians of "
        f"{result['runs']}.\n\n" + markdown_table(rows, COLUMNS)
    )


PACKAGES = ("Jinja2", "pillow", "contourpy", "matplotlib")
BENCHMARK = Benchmark(run, body, (FOLDER), packages=PACKAGES)

if __name__ == "__main__":
    BENCHMARK.exit()

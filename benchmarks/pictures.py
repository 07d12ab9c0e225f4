"""What the report and the figures of one labelled pair cost: seconds, bytes and memory."""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pairs import add_pair_options, labelled_pairs
from paramorph_rt import Registration
from paramorph_rt.errors import exit_code
from paramorph_rt.images.volume import load_labels, load_volume
from paramorph_rt.report import write_figures, write_report
from record import write_result

RUNS = 5


def measure(write: Callable[[Path], None], path: Path) -> dict[str, object]:
    """Repeat one picture; other processes lengthen the wall time, not the processor's."""
    write(path)  # the first run loads fonts and templates
    wall, processor, resident = [], [], [resident_mib()]
    for _ in range(RUNS):
        started = time.perf_counter(), time.process_time()
        write(path)
        wall.append(time.perf_counter() - started[0])
        processor.append(time.process_time() - started[1])
        resident.append(resident_mib())
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {
        "median_seconds": statistics.median(wall),
        "median_processor_seconds": statistics.median(processor),
        "bytes": {file.name: file.stat().st_size for file in files},
        "resident_mib_before_and_after_each": resident,
    }


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_pair_options(parser)
    args = parser.parse_args()
    moving, fixed = labelled_pairs(args.folder, args.pairs)[0]
    images = [load_volume(subject.image) for subject in (moving, fixed)]
    inputs = [*images, *(load_labels(subject.labels) for subject in (moving, fixed))]
    result = Registration()(*inputs)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        content: dict[str, object] = {
            "moving": moving.name,
            "fixed": fixed.name,
            "voxels": [list(image.grid.shape) for image in images],
            "labels": len(result.metrics["dice"]["after"]["labels"]),
            "runs": RUNS,
        }
        pictures = {
            "report": partial(write_report, result=result),
            "report with 3-D view": partial(write_report, result=result, solid=True),
            "figures": partial(write_figures, result=result),
        }
        sides = ("moving", "fixed", "moving_labels", "fixed_labels")
        for name, write in pictures.items():
            filled = partial(write, **dict(zip(sides, inputs, strict=True)))
            content[name] = measure(filled, home / name)
    print(write_result("pictures", content, ("Jinja2", "pillow", "contourpy", "matplotlib")))


if __name__ == "__main__":
    sys.exit(exit_code("pictures.py", run))

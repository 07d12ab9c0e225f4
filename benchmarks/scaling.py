"""How time and memory of `paramorph-rt infer` grow: with voxels, threads and the number of pairs.

The pair is Colin27 and itself deformed, at several resolutions, so that no other data is needed.
Sizes and threads are whole jobs, a process each; pairs go one after the other through one
`Registration` that is loaded once, and are written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bundles import add_model_option, single_bundle
from charts import growth_picture, stages_of
from colin import SIDE_MM, write_colin_pair
from isolated import empty_cache
from jobs import START_UP, Job, Task
from pairs import BenchmarkError
from paramorph_rt.errors import exit_code
from record import weights_sha256, write_page, write_result
from tables import markdown_table, origin

if TYPE_CHECKING:
    from paramorph.data import SubjectFiles

COSTS = (("seconds", "seconds", ".2f"), ("CPU, s", "cpu_seconds", ".2f"))
MEMORY = (("peak MB", "peak_mb", ".0f"),)

Row = dict[str, Any]
Pair = tuple["SubjectFiles", "SubjectFiles"]


def job_row(job: Job, pair: Pair, threads: int) -> Row:
    """One whole job.

    Raises:
        BenchmarkError: It failed.
    """
    with TemporaryDirectory() as out:
        return _checked(job.run(Task.of(*pair, Path(out)), threads, timeout_s=1800))


def pairs_row(job: Job, pair: Pair, count: int, threads: int) -> Row:
    """So many pairs through one `Registration` in a process of its own.

    Raises:
        BenchmarkError: It failed.
    """
    with TemporaryDirectory() as out:
        return _checked(job.run_many(Task.of(*pair, Path(out)), count, threads, timeout_s=1800))


def median_row(rows: Sequence[Row]) -> Row:
    """Medians of figures; `seconds` of each stage as well."""
    found: Row = {key: statistics.median(row[key] for row in rows) for key in _figures(rows[0])}
    found["each_seconds"] = [row["seconds"] for row in rows]
    if "stages" in rows[0]:
        found["stages"] = {
            stage: statistics.median(row["stages"][stage] for row in rows)
            for stage in rows[0]["stages"]
        }
    return found


def page(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    stages = [(stage, stage, ".2f") for stage in stages_of(result["sizes"])]
    sizes = [{**row, **row["stages"]} for row in result["sizes"]]
    megabytes = [("size", "size", "d"), *COSTS, *MEMORY]
    return (
        f"# {name}\n\nWritten by `benchmarks/scaling.py` from `{name}.json`: {origin(result)}; "
        f"{result['model']} by {result['engine']}, Colin27 with 116 labels and itself deformed. "
        f"Medians of {result['runs']} in turns.\n\n"
        f"Volumes of size³ voxels, {result['with_threads']} threads; {START_UP} is all beside the "
        "stages.\n\n"
        + markdown_table(sizes, [*megabytes, *stages])
        + f"\nThreads, at {result['size']}³:\n\n"
        + markdown_table(result["threads"], [("threads", "threads", "d"), *COSTS, *MEMORY])
        + f"\nPairs of {result['size']}³ through one `Registration`:\n\n"
        + markdown_table(
            [{**row, "each": row["seconds"] / row["pairs"]} for row in result["pairs"]],
            [("pairs", "pairs", "d"), *COSTS, ("seconds / pair", "each", ".2f"), *MEMORY],
        )
        + f"\n![Seconds and memory]({name}.svg)\n"
    )


@empty_cache()
def run(args: argparse.Namespace) -> None:
    """Measure; write the JSON, the tables and the picture."""
    label, bundle = single_bundle(args.model)
    job = Job(label, model=str(bundle.folder), engine=args.engine)
    most = max(args.threads)
    with TemporaryDirectory() as name:
        pairs: dict[int, Pair] = {}
        for size in {*args.sizes, args.size}:
            folder = Path(name) / str(size)
            folder.mkdir()
            pairs[size] = write_colin_pair(folder, size)
        whole = pairs[args.size]
        work = {
            **{("size", n): lambda n=n: job_row(job, pairs[n], most) for n in args.sizes},
            **{("threads", n): lambda n=n: job_row(job, whole, n) for n in args.threads},
            **{("pairs", n): lambda n=n: pairs_row(job, whole, n, most) for n in args.pairs},
        }
        job_row(job, pairs[min(pairs)], most)  # so that packages are in memory, kernels compiled
        rows: dict[tuple[str, int], list[Row]] = {key: [] for key in work}
        for _ in range(args.runs):
            for key, measure in work.items():
                rows[key].append(measure())
                print(*key, json.dumps(rows[key][-1]), file=sys.stderr, flush=True)
    found = [{kind: n, **median_row(each)} for (kind, n), each in rows.items()]
    path = write_result(
        args.name,
        {
            "load_average": os.getloadavg(),
            "model": label,
            "weights_sha256": weights_sha256(bundle),
            "engine": args.engine,
            "runs": args.runs,
            "with_threads": most,
            "size": args.size,
            "sizes": [row for row in found if "size" in row],
            "threads": [row for row in found if "threads" in row],
            "pairs": [row for row in found if "pairs" in row],
        },
        packages=["openvino"],
    )
    result = json.loads(path.read_text(encoding="utf-8"))
    growth_picture(result, path.with_suffix(".svg"))
    write_page(path, page(result, path.stem))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    sizes = [96, 128, 160, SIDE_MM, 256]
    add("--sizes", type=int, nargs="+", default=sizes, help="voxels per axis (%(default)s)")
    add("--size", type=int, default=SIDE_MM, help="for threads and pairs (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    threads = sorted({1, *range(2, cores + 1, 2), cores})
    add("--threads", type=int, nargs="+", default=threads, help="(default: %(default)s)")
    add("--pairs", type=int, nargs="+", default=[1, 2, 5], help="(default: %(default)s)")
    add("--runs", type=int, default=3, help="of each, in turns (default: %(default)s)")
    add_model_option(parser)
    add("--engine", default="auto:auto", help="backend:precision (default: %(default)s)")
    add("--name", default="scaling", help="of the result files (default: %(default)s)")
    args = parser.parse_args(argv)
    return exit_code("scaling.py", lambda: run(args))


def _checked(row: Row) -> Row:
    if "error" in row:
        raise BenchmarkError(f"job: expected it to end well, got {row['error']}; correct it first.")
    return row


def _figures(row: Row) -> list[str]:
    return [key for key in ("seconds", "cpu_seconds", "peak_mb") if key in row]


if __name__ == "__main__":
    sys.exit(main())

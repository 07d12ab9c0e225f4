"""What comes before any work: `paramorph-rt --help`, imports, loading the network by each engine.

A fresh process each time, in turns. The cache folder is empty at first, so that what an engine
keeps between runs counts from the second time on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bundles import add_model_option, single_bundle
from isolated import empty_cache, limited_to
from pairs import BenchmarkError
from paramorph_rt.backends.runtime_cache import user_cache_folder
from paramorph_rt.errors import exit_code
from record import add_run_options, weights_sha256, write_page, write_result
from tables import markdown_table, origin

ENGINES = "onnxruntime:fp32,openvino:fp32,openvino:bf16"
# Engine packages are imported by the second step, as they are by a user's first registration.
LOAD = """
import sys, time
from paramorph_rt import Registration
start = time.perf_counter()
Registration(sys.argv[1], int(sys.argv[2]), *sys.argv[3].split(":"))
print(time.perf_counter() - start)
"""
COLUMNS = (
    ("what", "what", ""),
    ("first, s", "first_seconds", ".3f"),
    ("median after, s", "median_seconds", ".3f"),
    ("most", "most_seconds", ".3f"),
    ("n", "n", "d"),
)


def run_python(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[float, str]:
    """Seconds of a fresh interpreter from start to end, and what it printed.

    Raises:
        BenchmarkError: It failed.
    """
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise BenchmarkError(
            f"start-up: expected python to end well, got {done.stderr.strip().splitlines()[-1:]}; "
            "correct that first."
        )
    return seconds, done.stdout


def steps(
    model: str, engines: Sequence[str], threads: int, environment: Mapping[str, str]
) -> dict[str, Callable[[], float]]:
    """What is timed, by name; each call takes a fresh process and returns seconds."""

    def shown() -> float:
        seconds, text = run_python(["-m", "paramorph_rt", "--help"], environment)
        assert "infer" in text
        return seconds

    def imported() -> float:
        return run_python(["-c", "from paramorph_rt import Registration"], environment)[0]

    def loaded(engine: str) -> float:
        arguments = ["-c", LOAD, model, str(threads), engine]
        return float(run_python(arguments, environment)[1].split()[-1])

    loads = {f"loading, {engine}": lambda e=engine: loaded(e) for engine in engines}
    return {"--help": shown, "importing Registration": imported, **loads}


def page(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    return (
        f"# {name}\n\nWritten by `benchmarks/startup.py` from `{name}.json`: {origin(result)}; "
        f"{result['model']}, {result['threads']} threads.\n\n"
        "The first two are whole processes. Loading goes from the bundle's files to a network that "
        "is ready, the import of its engine's package included; the first time with no cache.\n\n"
        + markdown_table(result["rows"], COLUMNS)
        + "\nKept between runs: "
        + (", ".join(f"{size:.0f} MB" for size in result["kept_mb"]) or "nothing")
        + ".\n"
    )


def run(args: argparse.Namespace) -> None:
    """Measure; write the JSON and the table."""
    label, bundle = single_bundle(args.model)
    with empty_cache():
        environment = limited_to(args.threads)
        work = steps(str(bundle.folder), args.engines.split(","), args.threads, environment)
        turns = [{what: measure() for what, measure in work.items()} for _ in range(args.runs + 1)]
        kept = [file.stat().st_size / 1e6 for file in user_cache_folder().glob("*")]
    rows = []
    for what in work:
        first, *later = (turn[what] for turn in turns)
        rows.append(
            {
                "what": what,
                "first_seconds": first,
                "median_seconds": statistics.median(later),
                "most_seconds": max(later),
                "n": len(later),
                "seconds": later,
            }
        )
    path = write_result(
        args.name,
        {
            "threads": args.threads,
            "load_average": os.getloadavg(),
            "model": label,
            "weights_sha256": weights_sha256(bundle),
            "kept_mb": sorted(kept),
            "rows": rows,
        },
        packages=["openvino"],
    )
    write_page(path, page(json.loads(path.read_text(encoding="utf-8")), path.stem))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_model_option(parser)
    add("--engines", default=ENGINES, help="backend:precision,… (default: %(default)s)")
    add_run_options(parser, "startup", runs=11, of="of each, after a first one")
    args = parser.parse_args(argv)
    return exit_code("startup.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

"""Tables of the documentation, and the pages of results: `python benchmarks/doc_tables.py`.

Whatever stands between `<!-- table: NAME -->` and `<!-- end -->` in a Markdown file is replaced by
what `TABLES` makes of the result NAME; each result has a page that its benchmark writes. `--check`
only says whether all are as they should be.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import end_to_end
import record
from benchmark import Benchmark
from paramorph_rt.errors import exit_code
from record import BenchmarkError, Result, read_result
from reproducibility import COLUMNS as DIFFERENCES
from tables import markdown_table, measured, stages_of

HOME = Path(__file__).parent
ROOT = HOME.parent
PLACES = ("*.md", "docs/**/*.md", "models/**/*.md", "benchmarks/*.md")
BLOCK = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

ENGINES = {
    "onnxruntime:fp32": "ONNX Runtime",
    "openvino:fp32": "OpenVINO",
    "openvino:bf16": "OpenVINO, bf16",
    "pytorch": "PyTorch",
    "transcription": "PyTorch, a plain transcription",
}
METHODS = {"affine": "affine alone", "diffeomorphic demons": "diffeomorphic demons (SimpleITK)"}


def accuracy(result: Result) -> str:
    """What a user asks first: Dice, smoothness and folds side by side, seconds; ours in bold."""
    rows = [
        {"method": _method(title), **entry}
        for title, entry in result["summary"].items()
        if title != "no registration"
    ]
    columns = (
        (_machine(result, result["threads"]), "method", ""),
        ("Dice", "dice", ".3f"),
        ("SDlogJ", "sd_log_jacobian", ".3f"),
        ("folds, %", "nonpositive_jacobian_percent", ".4f"),
        ("folded volume, %", "nondiffeomorphic_volume_percent", ".4f"),
        ("seconds", "seconds", ".1f"),
        ("files to files, s", "job_seconds", ".1f"),
        ("peak MB", "peak_mb", ".0f"),
    )
    return markdown_table(rows, measured(columns, rows))


def network_seconds(result: Result) -> str:
    """Seconds and memory of the last network of a result, with the most threads."""
    network = result["networks"][-1]
    most = max(row["threads"] for row in network["rows"])
    rows = [
        {**row, "contender": _engine(row["contender"])}
        for row in network["rows"]
        if "error" not in row and row["threads"] == most
    ]
    return markdown_table(
        rows,
        (
            (_machine(result, most), "contender", ""),
            ("network, s", "median_seconds", ".2f"),
            (f"times faster than {_engine(result['baseline'])}", "times_faster", ".1f"),
            ("peak MB", "peak_mb", ".0f"),
        ),
    )


def whole_job(result: Result) -> str:
    """Seconds from files to files, and where they go."""
    rows = [
        {**row, **row["stages"], "job": _method(row["job"])}
        for row in end_to_end.summarise(result["rows"])
    ]
    columns = [(_machine(result, result["threads"]), "job", ""), ("seconds", "seconds", ".1f")]
    columns += [column for column in end_to_end.COLUMNS if column[1].startswith("faster_than_")]
    columns += [("peak MB", "peak_mb", ".0f")]
    columns += [(stage, stage, ".1f") for stage in stages_of(rows)]
    return markdown_table(rows, measured(columns, rows))


#: By the benchmark that wrote the result.
TABLES: dict[str, Callable[[Result], str]] = {
    "accuracy": accuracy,
    "latency": network_seconds,
    "end-to-end": whole_job,
    "reproducibility": lambda result: markdown_table(result["rows"], DIFFERENCES),
}


@cache
def all_benchmarks() -> list[Benchmark]:
    """Those of the modules here that declare a `BENCHMARK`."""
    scripts = sorted(HOME.glob("*.py"))
    measuring = [s.stem for s in scripts if "\nBENCHMARK = " in s.read_text(encoding="utf-8")]
    return [import_module(name).BENCHMARK for name in measuring]


def benchmark_of(name: str) -> Benchmark:
    """The benchmark that wrote a result.

    Raises:
        BenchmarkError: None of them.
    """
    for benchmark in all_benchmarks():
        if re.fullmatch(rf"{benchmark.stem}(-.+)?", name):
            return benchmark
    raise BenchmarkError(
        f"{name}: expected the result of one of {', '.join(b.stem for b in all_benchmarks())}, got "
        "another; move it to results/settled, add its benchmark, or correct the mark."
    )


def table(name: str) -> str:
    """The Markdown that belongs between the marks of a table, which is named like its result.

    Raises:
        BenchmarkError: No such result, or not one that documents have a table of.
    """
    path = record.RESULTS / f"{name}.json"
    make = TABLES.get(benchmark_of(name).stem)
    if make is None or not path.is_file():
        raise BenchmarkError(
            f"{name}: expected a result of {', '.join(TABLES)} at {path}, found none; measure it "
            "first, or correct the mark."
        )
    return make(read_result(path))


def updated(text: str) -> str:
    """A Markdown file's text with all its tables as the results have them now."""
    return BLOCK.sub(lambda mark: f"{mark[1]}{table(mark[2])}{mark[3]}", text)


def outdated(root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """The files that say something else than their results, and what they should say."""
    for place in PLACES:
        for path in sorted(root.glob(place)):
            text = path.read_text(encoding="utf-8")
            if (wanted := updated(text)) != text:
                yield path, wanted
    for path in sorted(record.RESULTS.glob("*.json")):
        page = path.with_suffix(".md")
        wanted = benchmark_of(path.stem).page(read_result(path), path.stem)
        if not page.is_file() or wanted != page.read_text(encoding="utf-8"):
            yield page, wanted


def run(check: bool) -> None:
    """Write what is outdated, or say so."""
    old = list(outdated())
    if check and old:
        raise BenchmarkError(
            f"expected tables as the results have them, got others in "
            f"{', '.join(path.name for path, _ in old)}; run python benchmarks/doc_tables.py."
        )
    for path, text in old:
        path.write_text(text, encoding="utf-8")
        print(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if outdated")
    args = parser.parse_args(argv)
    return exit_code("doc_tables.py", lambda: run(args.check))


def _machine(result: Result, threads: int) -> str:
    words = {1: "one core", 2: "two cores"}
    return f"{words.get(threads, f'{threads} cores')} of {result['processor']}"


def _method(title: str) -> str:
    if not title.startswith("ParaMorph"):
        return METHODS.get(title, title)
    name, comma, setting = title.partition(", ")
    return f"**{name}**{comma}{_engine(setting)}"


def _engine(name: str) -> str:
    return ENGINES.get(name, name)


if __name__ == "__main__":
    sys.exit(main())

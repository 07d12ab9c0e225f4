"""What every benchmark has: a command line, a result file, a page and perhaps a plot.

A benchmark is a module with a function that measures and one that writes the page's text, declared
as its `BENCHMARK`; `doc_tables.py` finds all of them.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import record
from history import append
from paramorph_rt.errors import exit_code
from record import Result, Row, read_result
from tables import origin

Option = tuple[tuple[str, ...], dict[str, Any]]


def option(*flags: str, **settings: Any) -> Option:
    """As `argparse` takes it; the help names the default."""
    text = settings.get("help", "")
    if settings.get("default") not in (None, []) and "default" not in text:
        settings["help"] = f"{text} (default: %(default)s)".strip()
    return flags, settings


def runs(default: int, of: str) -> Option:
    """`--runs`: how often `of` is repeated."""
    return option("--runs", type=int, default=default, help=of)


CORES = len(os.sched_getaffinity(0))
LABELLED = "NAME_*.nii.gz with NAME_labels.nii.gz"
FOLDER = option("folder", type=Path, help=LABELLED)
OPTIONAL_FOLDER = option("--folder", type=Path, help=f"{LABELLED} (default: Colin27, deformed)")
FIRST = option("--first", type=int, metavar="N", help="pairs of a folder or set (default: all)")
MODELS = option("--model", action="append", metavar="BUNDLE[:LABEL]", help="default: as shipped")
MODEL = option("--model", type=Path, metavar="NAME|BUNDLE", help="default: as shipped")
ENGINES = option(
    "--engines", default="onnxruntime:fp32,openvino:fp32,openvino:bf16", help="backend:precision,…"
)
THREADS = option("--threads", type=int, default=CORES, help="default: all cores, %(default)s")
RESUME = option("--resume", action="store_true", help="measure only what the result file lacks")
OUT = option("--out", type=Path, metavar="DIR", help="of the result files (default: results)")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark; its module's docstring is the help.

    Attributes:
        run: From the parsed options to what the result says; or to the paths of results that it
            wrote itself, see `Rows`.
        body: A result as Markdown, below the heading.
        options: Of the command line; `--name` is added.
        name: What its result files are called, or how their names begin (default: as the script).
        packages: Whose versions matter besides those of `record.PACKAGES`.
        plot: Draws a result into a file.
        headline: Numbers of a result by "quantity, of what", for `history.py`.
    """

    run: Callable[[argparse.Namespace], Row | Iterable[Path]]
    body: Callable[[Result], str]
    options: Sequence[Option] = ()
    name: str = ""
    packages: Sequence[str] = ()
    plot: Callable[[Result, Path], None] | None = None
    headline: Callable[[Result], dict[str, float]] | None = None

    @property
    def script(self) -> Path:
        """Its file."""
        return Path(inspect.unwrap(self.run).__globals__["__file__"])

    @property
    def stem(self) -> str:
        """How its results' names begin."""
        return self.name or self.script.stem

    def main(self, argv: list[str] | None = None) -> int:
        """The command: measure; write the JSON, the page and the plot."""
        parser = argparse.ArgumentParser(
            description=inspect.unwrap(self.run).__globals__["__doc__"],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for flags, settings in self.options:
            parser.add_argument(*flags, **settings)
        if not any("--name" in flags for flags, _ in self.options):
            text = "of the result files (default: %(default)s)"
            parser.add_argument("--name", default=self.stem, help=text)
        args = parser.parse_args(argv)
        return exit_code(self.script.name, lambda: self._run(args))

    def exit(self) -> NoReturn:
        """Run as the script that this process was started as."""
        sys.exit(self.main())

    def page(self, result: Result, name: str) -> str:
        """The Markdown page of a result."""
        plot = f"\n![Plot]({name}.svg)\n" if self.plot else ""
        return (
            f"# {name}\n\nWritten by `benchmarks/{self.script.name}` from `{name}.json`: "
            f"{origin(result)}.\n\n{self.body(result)}{plot}"
        )

    def write(self, name: str, content: Result, folder: Path | None = None) -> Path:
        """Write JSON and page of what there is so far; returns the JSON's path."""
        path = record.write_result(name, content, self.packages, folder)
        path.with_suffix(".md").write_text(self.page(read_result(path), path.stem), "utf-8")
        return path

    def _run(self, args: argparse.Namespace) -> None:
        for path in self._results(args):
            result = read_result(path)
            page = self.page(result, path.stem)
            path.with_suffix(".md").write_text(page, encoding="utf-8")
            if self.plot:
                self.plot(result, path.with_suffix(".svg"))
            if self.headline:
                append(path.stem, result, self.headline(result))
            print(page, path, sep="\n")

    def _results(self, args: argparse.Namespace) -> Iterator[Path]:
        measured = self.run(args)
        if isinstance(measured, dict):
            yield self.write(args.name, measured, getattr(args, "out", None))
        else:
            yield from measured

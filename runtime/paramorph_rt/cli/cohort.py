"""`paramorph-rt cohort`: register many pairs, and go on where an earlier run stopped."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..fields import whole
from ..request import Options
from ..system.interrupts import number_of
from . import sign
from .arguments import add_fields, options_of
from .messages import DOUBTFUL, STOPPED

if TYPE_CHECKING:
    from ..cohort.pairs import Pair
    from ..cohort.work import Outcome

_EPILOG = """
The table has a pair on each line and the names of its columns in the first: moving and fixed, and
where wanted name, moving_labels, fixed_labels, moving_mask, fixed_mask, initial_transform, also and
also_labels (several files with | between them). Other columns go into the summary. Paths are
relative to the table.

Each pair gets the folder DIR/pairs/NAME with the results of `paramorph-rt infer`. A second run of
the same command keeps what is finished and still belongs to its files, options and model, and does
the rest. DIR/summary.html, .csv and .json summarise all pairs. With --bids-names, DIR is one
dataset of all pairs, without folders of their own.

examples:
  paramorph-rt cohort pairs.csv --out-dir OUT
  paramorph-rt cohort --template mni.nii.gz --images subjects/ --out-dir OUT
  paramorph-rt cohort --template mni.nii.gz --images subjects/ --out-dir derivatives --bids-names
  paramorph-rt cohort --all-pairs subjects/ --out-dir OUT --affine rigid
  paramorph-rt cohort pairs.csv --out-dir /shared/OUT --scheduler tcp://head:8786
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "cohort",
        help="register many pairs",
        description="Register the pairs of a table, all images to one template, or each image of "
        "a folder to each other. A pair that fails is reported and does not stop the others.",
        epilog=_EPILOG,
    )
    which = parser.add_mutually_exclusive_group(required=True).add_argument
    which("table", nargs="?", type=Path, metavar="PAIRS.csv", help="table of pairs")
    which("--template", type=Path, metavar="NII", help="fixed image for all --images")
    which("--all-pairs", type=Path, nargs="+", metavar="PATH", help="the same for each to each")
    add = parser.add_argument
    add(
        "--images",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="with --template: images, or folders to look for them in, BIDS datasets among them; "
        "NAME_labels.nii.gz, or NAME_dseg.nii.gz, is the label map of NAME.nii.gz or "
        "NAME_anything.nii.gz",
    )
    add("--template-labels", type=Path, metavar="NII", help="label map of the template")
    needed: dict[str, Any] = {"type": Path, "required": True}
    add("-o", "--out-dir", metavar="DIR", help="folder for all results", **needed)
    add(
        "--strict",
        action="store_true",
        help="do nothing at all where a file of the table is not there; else only its pair fails",
    )
    add_fields(parser, Options, ["bids_names"])
    add_running_options(parser)
    sign.add_option(parser)
    parser.set_defaults(run=run, usage_error=parser.error)


def add_running_options(parser: argparse.ArgumentParser) -> None:
    """Declare how many pairs are registered, and what of each."""
    add = parser.add_argument
    add(
        "--at-once",
        type=whole(1),
        default=3,
        metavar="N",
        help="pairs in memory at once, so that files are read and written while the network works "
        "(default: 3); more may help beside a GPU and many cores",
    )
    add(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of this Dask scheduler, which see the same files; each takes as "
        "many pairs at once as it has threads (dask worker --nthreads)",
    )
    add("--force", action="store_true", help="register finished pairs again")
    add("--json", action="store_true", help="print summary.json to stdout instead of a table")
    add_fields(parser, Options, but=["bids_names"])
    # Of single pairs only their outcomes are shown.
    parser.set_defaults(messages="paramorph_rt.cohort")


def run(args: argparse.Namespace) -> int:
    """Find the pairs, register them all."""
    if bool(args.template) != bool(args.images) or (args.template_labels and not args.template):
        args.usage_error("--template and --images belong together; --template-labels to them")
    options = checked_options(args)
    return register_all(args, options, _pairs(args))


def checked_options(args: argparse.Namespace) -> Options:
    """The options of all pairs; those that cannot be met here are refused before files are read."""
    from ..errors import CohortError
    from ..loaded import loaded
    from ..pair import check
    from ..results.outputs import check_outputs

    if args.scheduler is not None and args.require_signature is not None:
        raise CohortError(
            "--require-signature: expected a cohort in this process, got --scheduler, whose "
            "workers load models by themselves; set PARAMORPH_REQUIRE_SIGNATURE for each worker "
            "instead."
        )
    options = options_of(args)
    check_outputs(args.out_dir, force=True)
    if args.scheduler is None:
        check(options)
        loaded(options, wait=False)
    return options


def register_all(args: argparse.Namespace, options: Options, pairs: list[Pair]) -> int:
    """Register all pairs, summarise, print; returns the exit code."""
    from ..cohort.run import run_cohort
    from ..cohort.summary import HTML, write_summary
    from ..results.json_files import json_text
    from ..system.staging import abandon

    outcomes: dict[str, Outcome] = {}
    start, number = time.monotonic(), signal.SIGINT
    with _progress(len(pairs), args.quiet) as show, _first_ctrl_c(args.scheduler is None) as stop:
        running = run_cohort(
            pairs,
            options,
            args.out_dir,
            at_once=args.at_once,
            scheduler=args.scheduler,
            force=args.force,
            stop=stop,
        )
        try:
            with closing(running):
                for outcome in running:
                    outcomes[outcome.name] = outcome
                    show(outcome)
        except KeyboardInterrupt as interrupt:
            number = signal.Signals(number_of(interrupt))
            stop.set()
    summary = write_summary(args.out_dir, pairs, outcomes, time.monotonic() - start, options)
    page = args.out_dir / HTML
    print(json_text(summary, None).rstrip() if args.json else summary_table(summary, page))
    if stop.is_set() and summary["not_run"]:
        left = summary["not_run"]
        print(f"paramorph-rt: stopped with {left} pairs left; run it again", file=sys.stderr)
        abandon()
        return STOPPED + number
    failed = [outcome.name for outcome in outcomes.values() if outcome.status == "failed"]
    _check_none_failed(failed, pairs, page)
    return DOUBTFUL if options.fail_on_quality and is_doubtful(summary) else 0


def _check_none_failed(failed: list[str], pairs: list[Pair], page: Path) -> None:
    from ..errors import CohortError

    if failed:
        some = ", ".join(failed[:3]) + (", …" if len(failed) > 3 else "")
        raise CohortError(
            f"cohort: expected results of {len(pairs)} pairs, got {len(pairs) - len(failed)}, as "
            f"{some} failed; see {page}, mend what it says and run the same command again."
        )


def is_doubtful(summary: dict[str, Any]) -> bool:
    """Whether a warning makes the result of any pair doubtful, finished now or before."""
    return any(entry["warnings"] for entry in summary["results"])


def _pairs(args: argparse.Namespace) -> list[Pair]:
    from ..cohort.images import images_with_labels
    from ..cohort.pairs import pairs_of_all, pairs_of_table, pairs_to_template

    # Absolute, because workers have working folders of their own.
    if args.table:
        return pairs_of_table(args.table, args.strict)
    images = [path.absolute() for path in args.images or args.all_pairs]
    labelled = images_with_labels(images, but=args.out_dir)
    if args.all_pairs:
        return pairs_of_all(labelled)
    labels = args.template_labels and args.template_labels.absolute()
    return pairs_to_template(args.template.absolute(), labelled, labels)


@contextmanager
def _first_ctrl_c(graceful: bool) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets if it may be graceful; the second one interrupts."""
    stop = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def finish(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, before)
        print("\nfinishing the pairs under way; Ctrl-C again drops them", file=sys.stderr)

    graceful = graceful and threading.current_thread() is threading.main_thread()
    if graceful:
        signal.signal(signal.SIGINT, finish)
    try:
        yield stop
    finally:
        if graceful:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(total: int, quiet: bool) -> Iterator[Any]:
    """Show each outcome on stderr: under a bar in a terminal, else as a line with the rate.

    Args:
        total: Number of pairs.
        quiet: Only what is worth a line of its own.
    """
    from tqdm import tqdm

    counts = {"done": 0, "kept": 0, "failed": 0}
    terminal = sys.stderr.isatty()
    show_bar = terminal and not quiet
    # Kept pairs leave the total, so that they say nothing about the rate.
    with tqdm(total=total, unit="pair", smoothing=0.1, disable=not show_bar, leave=False) as bar:
        start = time.monotonic()

        def show(outcome: Outcome) -> None:
            counts[outcome.status] += 1
            if outcome.status == "kept":
                bar.total -= 1
                bar.refresh()
            else:
                bar.update()
            bar.set_postfix({k: n for k, n in counts.items() if n and k != "done"}, refresh=False)
            for line in _lines(outcome):
                tqdm.write(line, file=sys.stderr)
            if not (terminal or quiet):
                print(_pace(counts, total, time.monotonic() - start), file=sys.stderr)

        yield show


def _lines(outcome: Outcome) -> Iterator[str]:
    """What is worth a line of its own, whether or not there is a bar."""
    if outcome.status == "failed":
        yield f"{outcome.name} failed: {outcome.note}"
    elif outcome.note:
        yield f"{outcome.name} done again: {outcome.note}"
    for warning in outcome.warnings:
        yield f"{outcome.name}: {warning}"


def _pace(counts: dict[str, int], total: int, seconds: float) -> str:
    so_far, done = sum(counts.values()), counts["done"]  # failures are fast and say nothing
    line = f"{so_far}/{total} pairs"
    if done and so_far < total:
        left = (total - so_far) * seconds / done
        line += f", {60 * done / seconds:.1f} a minute, {left / 60:.0f} min left"
    others = ", ".join(f"{counts[key]} {key}" for key in ("kept", "failed") if counts[key])
    return f"{line} ({others})" if others else line


def summary_table(summary: dict[str, Any], page: Path) -> str:
    """What is printed of summary.json."""
    lines = []
    for title, name, worst in (
        ("quality score", "quality.score", "min"),
        ("Dice before", "dice.before.mean", "min"),
        ("Dice after", "dice.after.mean", "min"),
        ("HD95 after (mm)", "hd95_mm.after.mean", "max"),
        ("NCC before", "ncc.before", "min"),
        ("NCC after", "ncc.after", "min"),
        ("folded voxels (%)", "nonpositive_jacobian_percent", "max"),
    ):
        if entry := summary["statistics"].get(name):
            cells = "".join(f"{entry[key]:>9.3f}" for key in ("mean", "sd", "median", worst))
            lines.append(f"{title:<20}{entry['n']:>5}{cells}")
    if lines:
        lines.insert(0, f"{'':<20}{'n':>5}{'mean':>9}{'sd':>9}{'median':>9}{'worst':>9}")
    counts = ", ".join(
        f"{summary[key]} {key.replace('_', ' ')}"
        for key in ("done", "kept", "failed", "not_run")
        if summary[key]
    )
    rate = summary["pairs_per_minute"]
    pace = f" at {rate:.1f} pairs a minute" if rate else ""
    lines.append(f"{counts}{pace}; see {page}")
    return "\n".join(lines)

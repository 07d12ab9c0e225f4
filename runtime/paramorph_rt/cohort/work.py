"""One pair of a cohort, from its files to its folder; a failure is an outcome as well."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from ..errors import CohortError, OutputError, ParamorphError, explained
from ..loaded import loaded
from ..pair import names_of, register_pair
from ..report import pictures
from ..request import Options
from ..results import outputs
from ..results.provenance import facts_of
from ..system.files import check_regular
from ..system.staging import sweep
from .pairs import Pair
from .record import why_not_done, write_record

PAIRS = "pairs"  # the folder of the pairs' folders


@dataclass(frozen=True)
class Location:
    """Where the results of a pair lie: under these names in this folder."""

    folder: Path
    names: outputs.Names


def location_of(pair: Pair, options: Options, out_dir: Path) -> Location:
    """A folder of the pair's own, or with BIDS names the dataset that it shares with the others.

    Raises:
        OutputError: Two of its results would have one name.
    """
    folder = out_dir if options.bids_names else out_dir / PAIRS / pair.name
    return Location(folder, names_of(pair.inputs, options, folder))


@dataclass(frozen=True)
class Outcome:
    """What came of a pair.

    Attributes:
        name: Of the pair.
        status: "kept" was done before.
        note: Why it failed, or why an earlier result was not kept.
        seconds: From its files to its folder.
        warnings: Of the registration.
    """

    name: str
    status: Literal["done", "kept", "failed"]
    note: str = ""
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()


def run_pair(pair: Pair, options: Options, out_dir: Path, force: bool = False) -> Outcome:
    """Register a pair into its folder, unless that holds the same results already.

    The record is the last file that appears, so a pair that is interrupted anywhere is done again,
    and one that another process finished meanwhile is not.

    Args:
        pair: Any pair.
        options: Of the cohort.
        out_dir: The cohort's folder, which holds the pair's.
        force: Do it again in any case.

    Returns:
        The outcome; an error becomes one too.
    """
    start = time.perf_counter()
    try:
        with _warnings_of_this_thread() as warnings:
            note = _run_pair(pair, options, out_dir, force, warnings)
    except ParamorphError as err:
        return Outcome(pair.name, "failed", str(err), time.perf_counter() - start)
    except Exception as err:  # one pair's trouble, even a defect of ours, must not stop the others
        logging.getLogger(__name__).debug("%s failed", pair.name, exc_info=True)
        note = f"{pair.name}: expected a registration, got {type(err).__name__}: {err}."
        note = explained(err) or note
        return Outcome(pair.name, "failed", note, time.perf_counter() - start)
    if note is None:
        return Outcome(pair.name, "kept")
    return Outcome(pair.name, "done", note, time.perf_counter() - start, tuple(warnings))


def _run_pair(
    pair: Pair, options: Options, out_dir: Path, force: bool, warnings: list[str]
) -> str | None:
    """Why an earlier result was not kept ("" if there was none), or None if it was."""
    register = loaded(options)
    location = location_of(pair, options, out_dir)
    folder, names = location.folder, location.names
    for role, path in pair.inputs.files().items():
        if not path.exists():
            raise CohortError(
                f"{pair.name}: expected a file as {role}, found none at {path}; check the path."
            )
        if not path.is_dir():
            check_regular(path, f"a file as {role}", CohortError)
    read = [*pair.inputs.files().values(), *options.files().values()]
    outputs.check_outputs(folder, True, names, read)
    facts = facts_of(pair.inputs, options, register)
    wanted = [names.pictures[plain] for plain in pictures.files_of(options)]
    wanted += [names.composite] if options.itk_composite else []
    sweep(folder)  # what was killed while it moved is finished first
    check = partial(why_not_done, folder, facts, wanted, names)
    reason = check()
    if reason is None and not force:
        return None
    result, extras = register_pair(register, pair.inputs, options, names, facts)
    try:
        with outputs.staged_outputs(folder, True, names) as staging:
            result.save(staging, True, extras, names)
            write_record(staging, pair, result.metrics["provenance"], warnings, names)
            if not force:
                _check_not_overtaken(check())
    except OutputError:
        if not force and check() is None:
            return None
        raise
    return reason or ""


def _check_not_overtaken(reason: str | None) -> None:
    """Stop before another process's results are replaced by the same again.

    A worker that the scheduler has given up may live on and finish its pair.
    """
    if reason is None:
        raise OutputError(
            "expected to finish first, got the results of another process; keep them."
        )


@contextmanager
def _warnings_of_this_thread() -> Iterator[list[str]]:
    """What this thread warns of during the block; other threads have pairs of their own."""
    messages: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    thread = threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)
    log = logging.getLogger("paramorph_rt")
    log.addHandler(handler)
    try:
        yield messages
    finally:
        log.removeHandler(handler)

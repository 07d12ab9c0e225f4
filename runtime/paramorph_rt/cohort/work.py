"""One pair of a cohort, from its files to its folder; a failure is an outcome as well."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import outputs
from ..affine import AffineKind
from ..backends import AUTO, Backend, choose_backend
from ..bundle import default_bundle_path, load_bundle
from ..errors import OutputError, ParamorphError
from ..preprocess import Interpolation
from ..registration import Registration
from ..report.pictures import Pictures
from ..transforms.formats import read_start
from ..volume import load_grid
from .pairs import Pair
from .record import facts_of, why_not_done, write_record

if TYPE_CHECKING:
    import numpy as np

PAIRS = "pairs"  # the folder of the pairs' folders

_loading = threading.Lock()


@dataclass(frozen=True)
class Settings:
    """What all pairs of a cohort have in common; for its options see `Registration`.

    Attributes:
        output_grid: "fixed", "moving" or the path of an image.
        pictures: Drawn into each pair's folder.
    """

    model: Path | None = None
    backend: str = AUTO
    precision: str = AUTO
    threads: int | None = None
    affine: bool | AffineKind = True
    inverse: bool = False
    output_grid: str = "fixed"
    interpolation: Interpolation = "linear"
    pictures: Pictures = field(default_factory=Pictures)

    def registration(self) -> Registration:
        """The model, loaded once in this process; pairs that use it at once wait for each other."""
        with _loading:
            return _load(self.model, self.threads, self.backend, self.precision)


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


def run_pair(pair: Pair, settings: Settings, out_dir: Path, force: bool = False) -> Outcome:
    """Register a pair into its folder, unless that holds the same results already.

    The record is the last file that appears, so a pair that is interrupted anywhere is done again,
    and one that another process finished meanwhile is not.

    Args:
        pair: Any pair.
        settings: Of the cohort.
        out_dir: The cohort's folder, which holds the pair's.
        force: Do it again in any case.

    Returns:
        The outcome; an error becomes one too.
    """
    start = time.perf_counter()
    try:
        with _warnings_of_this_thread() as warnings:
            note = _run_pair(pair, settings, out_dir / PAIRS / pair.name, force, warnings)
    except ParamorphError as err:
        return Outcome(pair.name, "failed", str(err), time.perf_counter() - start)
    except Exception as err:  # one pair's trouble, even a defect of ours, must not stop the others
        logging.getLogger(__name__).debug("%s failed", pair.name, exc_info=True)
        note = f"{pair.name}: expected a registration, got {type(err).__name__}: {err}"
        return Outcome(pair.name, "failed", note, time.perf_counter() - start)
    if note is None:
        return Outcome(pair.name, "kept")
    return Outcome(pair.name, "done", note, time.perf_counter() - start, tuple(warnings))


def _run_pair(
    pair: Pair, settings: Settings, folder: Path, force: bool, warnings: list[str]
) -> str | None:
    """Why an earlier result was not kept ("" if there was none), or None if it was."""
    register = settings.registration()
    files = pair.files()
    if settings.output_grid not in ("fixed", "moving"):
        files["output_grid"] = Path(settings.output_grid)
    options = _options(settings)
    facts = facts_of(files, options, _model(register))
    check = partial(why_not_done, folder, facts, settings.pictures.files)
    reason = check()
    if reason is None and not force:
        return None
    grid = {"fixed": None, "moving": pair.moving}.get(settings.output_grid, settings.output_grid)
    start = None if pair.initial_transform is None else read_start(pair.initial_transform)
    inputs = pair.moving, pair.fixed, pair.moving_labels, pair.fixed_labels
    result = register(
        *inputs,
        settings.affine,
        initial=start,
        moving_mask=pair.moving_mask,
        fixed_mask=pair.fixed_mask,
        inverse=settings.inverse,
        output_grid=None if grid is None else load_grid(grid),
        interpolation=settings.interpolation,
        also=pair.also,
        also_labels=pair.also_labels,
    )
    shown = {name.replace("_", " "): value for name, value in options.items() if value}
    try:
        with outputs.staged_outputs(folder, force=True) as staging:
            result.save(staging, True, settings.pictures.of(result, *inputs, shown))
            write_record(staging, pair, facts, warnings)
            if not force:
                _check_not_overtaken(check())
            # From here to the end of the move, nothing vouches for what lies there.
            (folder / outputs.RECORD).unlink(missing_ok=True)
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


def _options(settings: Settings) -> dict[str, Any]:
    affine, grid = settings.affine, settings.output_grid
    if isinstance(affine, bool):
        affine = "auto" if affine else "none"  # type: ignore[assignment]
    return {
        "affine": affine,
        "inverse": settings.inverse,
        "output_grid": grid if grid in ("fixed", "moving") else "file",
        "interpolation": settings.interpolation,
    }


def _model(register: Registration) -> dict[str, Any]:
    bundle, backend = register.bundle, register.backend
    compiled = backend.name.startswith("tensorrt")
    used = bundle.engines if compiled else bundle.networks
    return {
        "name": bundle.name,
        "sha256": {entry.file: bundle.manifest["files"][entry.file]["sha256"] for entry in used},
        "backend": backend.name,
        "precision": backend.precision,
    }


class _InItsThread:
    """A backend whose runs wait for each other: two at once take longer and twice the memory.

    They have a thread of their own, because libraries of GPUs bind their state to the thread that
    loaded the network.
    """

    def __init__(self, load: Callable[[], Backend]) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        self._backend = self._thread.submit(load).result()
        self.name, self.precision = self._backend.name, self._backend.precision

    def run(self, moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        """See `Backend.run`."""
        return self._thread.submit(self._backend.run, moving, fixed).result()


@lru_cache(maxsize=1)
def _load(model: Path | None, threads: int | None, backend: str, precision: str) -> Registration:
    bundle = load_bundle(default_bundle_path() if model is None else model)
    in_its_thread = _InItsThread(partial(choose_backend, bundle, backend, precision, threads))
    return Registration(bundle, threads, in_its_thread)


@contextmanager
def _warnings_of_this_thread() -> Iterator[list[str]]:
    """What this thread warns of during the block; other threads have pairs of their own."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    thread = threading.get_ident()
    handler.addFilter(lambda record: record.thread == thread)
    log = logging.getLogger("paramorph_rt")
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)

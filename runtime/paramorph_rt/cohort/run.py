"""Where the pairs of a cohort run: in threads here, or on the workers of a Dask cluster."""

from __future__ import annotations

import logging
import queue
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CohortError
from ..loaded import loaded
from ..pair import check, names_of_labels
from ..results.outputs import write_shared
from ..results.provenance import installed_versions
from ..system.optional import import_optional
from ..system.staging import sweep
from .work import PAIRS, Outcome, location_of, run_pair

if TYPE_CHECKING:
    from ..request import Options
    from .pairs import Pair

log = logging.getLogger(__name__)

# One that reads and aligns, one in the network, one that is measured and written.
PAIRS_AT_ONCE = 3
CONNECT_SECONDS = 20


def run_cohort(  # its keywords are options of the command
    pairs: Sequence[Pair],
    options: Options,
    out_dir: str | Path,
    *,
    at_once: int = PAIRS_AT_ONCE,
    scheduler: str | None = None,
    force: bool = False,
    stop: threading.Event | None = None,
) -> Generator[Outcome, None, None]:
    """Register many pairs; each outcome comes when its pair is finished.

    Several pairs are under way at once, each in a thread of its own, so that reading, aligning,
    measuring and writing go on while the network computes for another pair; no more than these
    are in memory. The network runs for one pair at a time.

    Args:
        pairs: See `pairs`; their names must differ.
        options: Of all pairs.
        out_dir: Gets `pairs/NAME` for each pair.
        at_once: Pairs in memory; on a cluster each worker has its own number of threads instead.
        scheduler: Address of a Dask scheduler, whose workers see the same files under the same
            paths; None runs here.
        force: Register finished pairs again.
        stop: Once it is set, pairs under way here are the last.

    Yields:
        As many outcomes as pairs, in the order in which they finish. Closing the generator cancels
        the pairs that a cluster has not begun.

    Raises:
        CohortError: The cluster cannot be used, or two pairs would share a BIDS name.
        MissingDependencyError: `scheduler` without the package distributed, or pictures here
            without the extra "report".
        ParamorphError: The model cannot be loaded here.
    """
    out_dir = Path(out_dir).absolute()
    home = out_dir if options.bids_names else out_dir / PAIRS
    _check_locations(pairs, options, out_dir)
    if scheduler is None:
        check(options)
        loaded(options)  # a model that cannot be loaded is one error, not one of each pair
    else:
        names_of_labels(options)  # a table that cannot be used is one error, too
    home.mkdir(parents=True, exist_ok=True)
    for folder in (home, *home.iterdir()):
        if folder.is_dir():
            sweep(folder)
    for pair in pairs:  # one after the other, so that each links to the datasets of those before
        write_shared(home, location_of(pair, options, out_dir).names)
    task = partial(run_pair, options=options, out_dir=out_dir, force=force)
    if scheduler is not None:
        yield from _on_cluster(pairs, task, scheduler)
        return
    yield from _in_threads(pairs, task, at_once, stop or threading.Event())


def _check_locations(pairs: Sequence[Pair], options: Options, out_dir: Path) -> None:
    owners: dict[Path, str] = {}
    for pair in pairs:
        place = location_of(pair, options, out_dir)
        for name in place.names.own:
            owner = owners.setdefault(place.folder / name, pair.name)
            if owner != pair.name:
                raise CohortError(
                    f"{pair.name}: expected BIDS names of its own, got {name} as for {owner}; give "
                    "the images names that differ in an entity, or leave out --bids-names."
                )


def _in_threads(
    pairs: Sequence[Pair], task: Callable[[Pair], Outcome], at_once: int, stop: threading.Event
) -> Iterator[Outcome]:
    waiting = iter(pairs)  # shared: each thread takes its next from it
    finished: queue.SimpleQueue[Outcome | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            for pair in waiting:
                if stop.is_set():
                    break
                finished.put(task(pair))
        finally:
            finished.put(None)

    # Daemons, so that the program can end at any time; what they leave is swept away next time.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(pairs)))]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            outcome = finished.get()
            if outcome is None:
                running -= 1
            else:
                yield outcome
    finally:
        stop.set()


def _on_cluster(
    pairs: Sequence[Pair], task: Callable[[Pair], Outcome], address: str
) -> Iterator[Outcome]:
    distributed = _import_distributed()
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError, TimeoutError) as err:
        raise CohortError(
            f"{address}: expected a Dask scheduler, got no answer in {CONNECT_SECONDS} s; check "
            "the address and that `dask scheduler` runs there."
        ) from err
    with client:
        log.info("%d workers at %s", len(client.nthreads()), address)
        _check_versions(client, address)
        run = uuid.uuid4().hex  # else the scheduler could answer with an earlier run's outcomes
        keys = {f"{run}-{pair.name}": pair.name for pair in pairs}
        futures = client.map(task, list(pairs), key=list(keys), pure=False)
        try:
            for future in distributed.as_completed(futures):
                yield _outcome(future, keys[future.key])
                future.release()
        finally:
            client.cancel(futures)


def _outcome(future: Any, name: str) -> Outcome:
    """Of a finished task; its own errors are outcomes already, so others are the cluster's."""
    try:
        return future.result()
    except Exception as err:
        note = f"{name}: expected an outcome from the cluster, got {type(err).__name__}: {err}"
        return Outcome(name, "failed", note)


def _check_versions(client: Any, address: str) -> None:
    """Refuse workers that would compute by different software."""
    try:
        versions = client.run(installed_versions)
    except Exception as err:
        raise CohortError(
            f"{address}: expected workers that have paramorph-rt, got {type(err).__name__}: {err}; "
            "install it in their environment."
        ) from err
    different = {tuple(of_worker.items()) for of_worker in versions.values()}
    if len(different) > 1:
        first, second, *_ = (dict(versions) for versions in different)
        what = next(name for name in first if first[name] != second[name])
        raise CohortError(
            f"{address}: expected the same software on all workers, got {what} {first[what]} and "
            f"{second[what]}; install the same versions."
        )


def _import_distributed() -> Any:
    return import_optional("distributed", "cluster", "cohort --scheduler")

"""A model that is loaded once in a process, and whose network runs for one pair at a time."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from .backends import (
    AUTO,
    Backend,
    check_no_request,
    check_request,
    choose_backend,
    choose_features,
)
from .backends.interface import Closable
from .bundle import AUTO_MODEL, NO_MODEL, Bundle, bundle_path, candidates, load_bundle
from .errors import ParamorphError
from .model import Model
from .registration import Registration
from .system.threads import Later, submitted

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from .request import Options

_loading = threading.Lock()


def loaded(options: Options, wait: bool = True) -> Registration:
    """The same registration for the same model and engine, in every thread; see `Registration`.

    Args:
        options: Name model, engine, precision and threads; their refinement decides what is loaded.
        wait: Until the network is loaded. Without, it loads while the first pair is aligned, when
            that has been read without an error, and what is wrong with it is raised where it is
            needed.

    Raises:
        BackendError: An engine or a precision that cannot be had here.
    """
    with _loading:
        register = _load(options.model, options.threads, options.backend, options.precision)
    if wait:
        try:
            register.ready(options.levels)
        except ParamorphError:
            _load.cache_clear()  # what is missing may be there the next time
            raise
    return register


class _InItsThread(Closable):
    """A backend whose runs wait for each other: two at once take longer and twice the memory.

    They have a thread of their own, because libraries of GPUs bind their state to the thread that
    loaded the network.
    """

    def __init__(self, backend: Backend, thread: Executor) -> None:
        self._backend, self._thread = backend, thread
        self.name, self.precision = backend.name, backend.precision
        self.shapes = backend.shapes

    def run(self, moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
        """See `Backend.run`."""
        return submitted(self._thread, lambda: self._backend.run(moving, fixed)).result()

    def _release(self) -> None:
        submitted(self._thread, self._backend.close).result()


@lru_cache(maxsize=1)
def _load(model: Path | str, threads: int | None, backend: str, precision: str) -> Registration:
    if model == NO_MODEL:
        check_no_request(backend, precision)
        return Registration(NO_MODEL, threads)
    is_free = model == AUTO_MODEL
    paths = candidates() if is_free else [bundle_path(model)]
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")

    def ready(bundle: Bundle) -> Model:
        request = bundle, backend, precision, threads

        def load(choose: Callable[..., Backend]) -> Later[Backend]:
            return Later(lambda: submitted(thread, lambda: _InItsThread(choose(*request), thread)))

        if (backend, precision) != (AUTO, AUTO):
            check_request(bundle.main, *request[1:])
        return Model(bundle, load(choose_backend), load(choose_features))

    models = [ready(load_bundle(path)) for path in paths]
    return Registration.with_models(models, threads, is_free=is_free)

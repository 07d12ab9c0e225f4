"""Ctrl-C, and the signals by which systems end a program: all end it in one orderly way.

Each becomes a KeyboardInterrupt in the main thread, so that whatever is half-written is removed on
the way out.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Windows has no SIGHUP, which a closed terminal sends.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_USUAL = (signal.SIG_DFL, signal.default_int_handler)
_AGAIN_S = 0.05
_received: list[int] = []


class Stopped(KeyboardInterrupt):
    """A signal ends the program.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


def number_of(stop: KeyboardInterrupt) -> int:
    """The signal behind an interrupt."""
    return stop.number if isinstance(stop, Stopped) else signal.SIGINT


def first_signal() -> int | None:
    """The first signal to end the program since `stop_on_signals`; None if none did."""
    return _received[0] if _received else None


def stop_on_signals() -> None:
    """From now on a signal raises `Stopped`; those that are ignored, as under nohup, stay so."""
    _received.clear()
    for number in _SIGNALS:
        if signal.getsignal(number) in _USUAL:
            signal.signal(number, _stop)


def die_on_signals() -> None:
    """From now on a signal ends the process at once: there is nothing left to tidy up."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _stop:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def held() -> Iterator[None]:
    """Signals that have a handler wait until the block has ended; it must be short."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():  # no other handles signals
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        before = {number: handler for number, handler in before.items() if callable(handler)}
    for number in before:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def _stop(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        _received.append(number)
        raise Stopped(number)
    # Extension modules, such as NumPy's, are broken for good if their import is.
    again = threading.Timer(_AGAIN_S, _send, [signal.Signals(number)])
    again.daemon = True
    again.start()


def _send(number: signal.Signals) -> None:
    """The signal once more, which also wakes the main thread where systems allow it."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, number)
    else:
        _thread.interrupt_main(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False

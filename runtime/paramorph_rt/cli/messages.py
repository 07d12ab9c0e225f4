"""What every command writes to stderr, how much of it, and the exit code in the end."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from ..errors import explained, one_line
from ..system.interrupts import first_signal, number_of
from ..system.memory import check_address_space

ERROR = 1
DOUBTFUL = 3  # results are written, and one of them has a warning
DEFECT = 70  # EX_SOFTWARE of BSD's sysexits.h
STOPPED = 128  # + the number of the signal, as shells have it
NO_READER = 141  # 128 + SIGPIPE

ALL_MESSAGES = "paramorph_rt"

# What still runs in the background has no say after a command's last line.
_NOBODY = logging.NullHandler()

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare how much a command writes."""
    add = parser.add_argument_group("messages").add_mutually_exclusive_group().add_argument
    add("-q", "--quiet", action="store_true", help="no progress, only warnings and errors")
    add(
        "-v",
        "--verbose",
        action="store_true",
        help="also what was tried, such as why an engine was skipped, and tracebacks of errors",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command that was parsed; returns its exit code.

    Args:
        args: With `run`, `quiet` and `verbose`; `messages`, if there, names the logger whose
            messages are shown; --verbose shows all.
    """
    with _log_on_stderr(args), _streams():
        try:
            check_address_space()
            code: int = args.run(args)
            if sys.stdout is not None:  # as it is after >&-
                sys.stdout.flush()
        except KeyboardInterrupt as stop:
            return _end(STOPPED + number_of(stop), "interrupted")
        except BrokenPipeError:  # as by `| head`
            return NO_READER
        except Exception as err:
            # In the middle of a lock, Python raises other errors.
            if (number := first_signal()) is not None:
                return _end(STOPPED + number, "interrupted")
            sentence = explained(err)
            if sentence is not None:
                return _end(ERROR, one_line(sentence))
            return _end(
                DEFECT,
                f"{type(err).__name__}: {err}\nThis is a defect of paramorph-rt. Please report it "
                "to its maintainers with what --verbose adds and what `paramorph-rt info` prints.",
            )
    return code


def _end(code: int, message: str) -> int:
    log.debug("exit code %d after", code, exc_info=True)
    if sys.stderr is not None:  # else `print` would take stdout
        with suppress(OSError):
            print(f"paramorph-rt: {message}", file=sys.stderr)
    return code


@contextmanager
def _streams() -> Iterator[None]:
    """Print what a stream's encoding lacks as ?; let no stream that is full fail once more."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if not _takes_output(stream):
                # The interpreter flushes at its end, and would change the exit code.
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _takes_output(stream: TextIO | None) -> bool:
    """Whether all that was printed has been written; a closed stream wants nothing."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        return False
    return True


class _OneLine(logging.Formatter):
    """A message as a line, whatever the names in it."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging`."""
        return one_line(super().format(record))


@contextmanager
def _log_on_stderr(args: argparse.Namespace) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    verbose = logging.Formatter("%(asctime)s %(name)s: %(message)s")
    handler.setFormatter(verbose if args.verbose else _OneLine())
    name = ALL_MESSAGES if args.verbose else getattr(args, "messages", ALL_MESSAGES)
    logger = logging.getLogger(name)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(
        logging.DEBUG if args.verbose else logging.WARNING if args.quiet else logging.INFO
    )
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)
        logging.getLogger(ALL_MESSAGES).addHandler(_NOBODY)

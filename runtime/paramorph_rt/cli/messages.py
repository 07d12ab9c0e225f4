"""What every command tells on stderr, how much of it, and the exit code in the end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import ParamorphError

ERROR = 1
DEFECT = 70  # EX_SOFTWARE of BSD's sysexits.h
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
NO_READER = 141  # 128 + SIGPIPE

ALL_MESSAGES = "paramorph_rt"

log = logging.getLogger(__name__)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare how much a command tells."""
    add = parser.add_argument_group("messages").add_mutually_exclusive_group().add_argument
    add("-q", "--quiet", action="store_true", help="no progress, only warnings and errors")
    add(
        *("-v", "--verbose"),
        action="store_true",
        help="also what was tried, such as why an engine was skipped, and tracebacks of errors",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command that was parsed; returns its exit code.

    Args:
        args: With `run`, `quiet` and `verbose`; `messages`, if there, names the logger that is
            told unless all is (--verbose).
    """
    with _log_on_stderr(args):
        try:
            code: int = args.run(args)
            sys.stdout.flush()
        except ParamorphError as err:
            return _end(ERROR, str(err))
        except MemoryError as err:
            said = str(err) or "none"
            return _end(ERROR, f"memory: expected enough, got: {said}; free some, or crop images.")
        except KeyboardInterrupt:
            return _end(INTERRUPTED, "interrupted")
        except BrokenPipeError:  # as by `| head`
            # Else the interpreter fails once more when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return NO_READER
        except Exception as err:
            return _end(
                DEFECT,
                f"{type(err).__name__}: {err}\nThis is a defect of paramorph-rt. Please report it "
                "to its maintainers with what --verbose adds and what `paramorph-rt info` prints.",
            )
    return code


def _end(code: int, message: str) -> int:
    log.debug("exit code %d after", code, exc_info=True)
    print(f"paramorph-rt: {message}", file=sys.stderr)
    return code


@contextmanager
def _log_on_stderr(args: argparse.Namespace) -> Iterator[None]:
    handler = logging.StreamHandler(sys.stderr)
    if args.verbose:
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    name = ALL_MESSAGES if args.verbose else getattr(args, "messages", ALL_MESSAGES)
    told = logging.getLogger(name)
    before = told.level
    told.addHandler(handler)
    told.setLevel(
        logging.DEBUG if args.verbose else logging.WARNING if args.quiet else logging.INFO
    )
    try:
        yield
    finally:
        told.setLevel(before)
        told.removeHandler(handler)

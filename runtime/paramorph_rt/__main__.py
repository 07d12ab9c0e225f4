"""`python -m paramorph_rt`, and the program `paramorph-rt`, from its first moment to its last."""

from __future__ import annotations

import sys

from .interrupts import die_on_signals, number_of, stop_on_signals


def program() -> int:
    """Run the command line; a signal at any time ends it in an orderly way.

    Returns:
        The exit code.
    """
    stop_on_signals()
    try:
        from .cli import console

        return console()
    except KeyboardInterrupt as stop:  # before the command began; `messages` has all later ones
        print("paramorph-rt: interrupted", file=sys.stderr)
        return 128 + number_of(stop)
    finally:
        die_on_signals()


if __name__ == "__main__":
    raise SystemExit(program())

"""`python -m paramorph_rt`, and the program `paramorph-rt`, from its first moment to its last."""

from __future__ import annotations

import os
import sys
import warnings

from .system.interrupts import die_on_signals, number_of, stop_on_signals


def program() -> int:
    """Run the command line; a signal at any time ends it in an orderly way.

    Returns:
        The exit code.
    """
    stop_on_signals()
    shield_streams()
    try:
        from .cli import console

        return console()
    except KeyboardInterrupt as stop:  # before the command began; `messages` has all later ones
        print("paramorph-rt: interrupted", file=sys.stderr)
        return 128 + number_of(stop)
    finally:
        die_on_signals()


def shield_streams() -> None:
    """What libraries print by themselves goes nowhere, unless --verbose asks for everything.

    ITK, HDF5 and others write to descriptor 2, so our own messages get another. A descriptor that
    is closed would be the next file that is opened, such as a result, so none stays closed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one
    if sys.stderr is None or {"-v", "--verbose"} & set(sys.argv[1:]):
        return
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    ours, encoding = os.dup(2), sys.stderr.encoding
    sys.stderr = os.fdopen(ours, "w", 1, encoding, "backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


if __name__ == "__main__":
    raise SystemExit(program())

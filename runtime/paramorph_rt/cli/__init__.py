"""The command line: `paramorph-rt COMMAND`, one module per command.

Exit codes: 0 success; 1 an error that a sentence on stderr explains; 2 wrong usage; 3 with
--fail-on-quality, a result that is doubtful; 70 a defect of ours; 130 interrupted by Ctrl-C (143 by
SIGTERM); 141 nobody reads what is printed.
"""

from __future__ import annotations

import argparse
import atexit
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import PURPOSE
from . import (
    bids,
    cohort,
    completion,
    evaluate,
    infer,
    info,
    messages,
    models,
    sign,
    transform,
    triton,
)
from .layout import HelpFormatter, Parser, commands_of, parsers_of

COMMANDS = (infer, cohort, bids, evaluate, transform, info, models, sign, triton, completion)

_EPILOG = """
`paramorph-rt COMMAND --help` explains a command and shows examples.

examples:
  paramorph-rt infer --moving m.nii.gz --fixed f.nii.gz --out-dir OUT
  paramorph-rt info

exit codes:
  0    success
  1    an error that the last line on stderr explains
  2    wrong usage
  3    with --fail-on-quality: results are written, but a warning makes them doubtful
  70   a defect of paramorph-rt
  130  interrupted by Ctrl-C, 143 by SIGTERM; results are whole or absent
"""


def console() -> int:
    """The program: `main`, whose process ends as soon as all that was registered for its end ran.

    What engines hold is the system's to take back at once, as freeing it piece by piece takes
    time. Only libraries of GPUs are freed, as they may write what they compiled then.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # × and → where the locale lacks them
            stream.reconfigure(errors="backslashreplace")
    code: int | None = None

    def end() -> None:
        if code is not None and not _has_gpu():  # else the interpreter ends in its own way
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    if stream is not None:  # as it is after >&-
                        stream.flush()
            os._exit(code)

    atexit.register(end)  # the first that is registered is the last that runs
    code = main()
    return code


def _has_gpu() -> bool:
    """Whether NVIDIA's driver is in this process, or nobody can tell."""
    try:
        return "/libcuda.so" in Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = build_parser().parse_args(argv)
    sign.require(args)
    return messages.run(args)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="paramorph-rt",
        description="Deformable registration of 3-D medical images with ParaMorph. " + PURPOSE,
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action=_Version, help="show the versions and exit")
    parser.set_defaults(root=parser)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    for each in parsers_of(parser):
        each.formatter_class = HelpFormatter
        if not commands_of(each):
            messages.add_options(each)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when asked, as that reads the installed metadata."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .. import __version__

        engines = ", ".join(" ".join(item) for item in info.engine_versions().items())
        print(f"paramorph-rt {__version__} ({engines})")
        parser.exit()

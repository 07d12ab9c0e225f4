"""The command line: `paramorph-rt COMMAND`, one module per command.

Exit codes: 0 success, 1 an error that a sentence on stderr explains, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ParamorphError
from . import infer, transform

COMMANDS = (infer, transform)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except ParamorphError as err:
        print(f"paramorph-rt: {err}", file=sys.stderr)
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="paramorph-rt",
        description="Deformable registration of 3-D medical images with ParaMorph.",
    )
    parser.add_argument("--version", action=_Version, help="show the version and exit")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


class _Version(argparse.Action):
    """Looks the version up only when asked, as that reads the installed metadata."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .. import __version__

        parser.exit(message=f"paramorph-rt {__version__}\n")

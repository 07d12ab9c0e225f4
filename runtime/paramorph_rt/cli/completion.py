"""`paramorph-rt completion`: what makes a shell complete commands, options and files."""

from __future__ import annotations

import argparse
from pathlib import Path

SHELLS = ("bash", "zsh", "fish", "tcsh")
# What takes a file although it is not converted to a path, and what takes a folder.
_FILES = ("TRANSFORM", "GRID")
_FOLDERS = ("DIR", "REPO", "BUNDLE")

_EPILOG = """
Print it into a file that the shell reads when it starts; do so again after an update.

examples:
  paramorph-rt completion bash > ~/.local/share/bash-completion/completions/paramorph-rt
  paramorph-rt completion zsh > ~/.zfunc/_paramorph-rt        # ~/.zfunc being in $fpath
  paramorph-rt completion fish > ~/.config/fish/completions/paramorph-rt.fish
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "completion",
        help="print a script for completion in a shell",
        description="Print a script by which a shell completes commands, options, their choices, "
        "files and folders.",
        epilog=_EPILOG,
    )
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"{', '.join(SHELLS)}")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from .layout import parsers_of

    for parser in parsers_of(args.root):
        for action in parser._actions:
            if action.metavar in _FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.type is Path or action.metavar in _FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(args.root, shell=args.shell))
    return 0

"""How a command line explains itself: help, wrong usage, and the way through its commands."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ..errors import one_line


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a call in one line, instead of below all options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """See `argparse`, which takes `--threads=--` for an option with an empty list."""
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            if action.nargs in (None, argparse.OPTIONAL) and getattr(found, action.dest, 0) == []:
                self.error(f"argument {'/'.join(action.option_strings)}: expected one argument")
        return found, rest

    def error(self, message: str) -> NoReturn:
        """See `argparse`; exit code 2."""
        self.exit(2, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")


class HelpFormatter(argparse.HelpFormatter):
    """Wraps prose; a paragraph with indented lines, such as examples, stays as it is.

    Options and file names are not parted at their hyphens.
    """

    def add_argument(self, action: argparse.Action) -> None:
        """See `argparse`, which forgets that commands are indented."""
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction):
            self._action_max_length += self._indent_increment

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            textwrap.indent(
                text
                if text[:1] == " " or "\n " in text
                else "\n".join(self._split_lines(text, width - len(indent))),
                indent,
            )
            for text in text.strip("\n").split("\n\n")
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _path(text: str) -> Path:
    """A path as it is written; an empty one, as of an unset variable, is no working folder."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty one")
    return Path(text)


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser itself and those of its commands, their actions included; `prog` names each."""
    yield parser
    for command in commands_of(parser).values():
        yield from parsers_of(command)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers right below by their names; none for a command that does something."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}

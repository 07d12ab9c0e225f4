"""How a command line explains itself: help, wrong usage, and the way through its commands."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a call in one line, instead of below all options."""

    def error(self, message: str) -> NoReturn:
        """See `argparse`; exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


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

"""The layout of help texts, and the way through a parser's commands."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator


class HelpFormatter(argparse.HelpFormatter):
    """Wraps prose; a paragraph with indented lines, such as examples, stays as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(
            textwrap.indent(text, indent)
            if text[:1] == " " or "\n " in text
            else fill(text, width, indent)
            for text in text.strip("\n").split("\n\n")
        )


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

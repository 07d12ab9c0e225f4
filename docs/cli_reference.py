"""Writes cli.md, the reference of the command line, from its parser: `make docs` runs it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from paramorph_rt.cli import build_parser
from paramorph_rt.cli.layout import commands_of, parsers_of

PAGE = Path(__file__).with_name("cli.md")


def reference() -> str:
    """The page: for each command its synopsis, options and examples."""
    root = build_parser()
    lines = [
        "# Command line",
        "",
        "<!-- Written by docs/cli_reference.py from the parser; change the help texts there. -->",
        "",
        *_text(root.epilog),
    ]
    for parser in parsers_of(root):
        if not commands_of(parser):
            lines += _command(parser)
    return "\n".join(lines)


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from (f"## {parser.prog}", "", *_text(parser.description))
    yield from ("```text", _synopsis(parser), "```", "")
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.dest != "help"]
        if not actions:
            continue
        if group.description:
            yield from (f"{group.title}: {group.description}", "")
        yield from ("| | |", "|---|---|")
        for action in actions:
            yield f"| {_invocation(action)} | {_help(action)} |"
        yield ""
    yield from _text(parser.epilog)


def _synopsis(parser: argparse.ArgumentParser) -> str:
    """What a call cannot do without."""
    needed = [
        f"{a.option_strings[-1]} {_values(a)}" if a.option_strings else _values(a)
        for a in parser._actions
        if a.required or not (a.option_strings or a.nargs == "?")
    ]
    return " ".join([parser.prog, *needed, "[OPTION …]"])


def _invocation(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    values = _values(action)
    return " ".join(part for part in (names, f"`{values}`" if values else "") if part)


def _values(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    name = action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}"
    return f"{name} …" if action.nargs == "+" else str(name)


def _help(action: argparse.Action) -> str:
    text = (action.help or "").replace("|", "\\|")

    return f"{text} (needed)" if action.required and action.option_strings else text


def _text(text: str | None) -> Iterator[str]:
    """Prose as it is; indented lines, and what introduces them, as blocks of code."""
    for paragraph in (text or "").strip("\n").split("\n\n"):
        lines = paragraph.split("\n")
        code = [line.removeprefix("  ") for line in lines if line.startswith(" ")]
        prose = [line for line in lines if not line.startswith(" ")]
        yield from (*prose, "") if prose else ()
        if code:
            yield from ("```text", *code, "```", "")


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")

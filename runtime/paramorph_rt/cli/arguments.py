"""What commands have in common: the options of a request, and --json."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..errors import install_command
from ..fields import about, flags_of
from ..request import Inputs, Options, fields_of

# The name of a file that is printed.
STDOUT = Path("-")
GROUPS = {"pictures": f"they need the extra: {install_command('report')}"}


def add_fields(
    parser: argparse.ArgumentParser,
    kind: type[Inputs] | type[Options],
    only: Collection[str] = (),
    but: Collection[str] = (),
) -> None:
    """Declare an option for each field of a request, all of them or `only` these."""
    fields = fields_of(kind)
    groups: dict[str, Any] = {"": parser}
    for name in only or [name for name in fields if name not in but]:
        group = about(fields[name]).group
        if group not in groups:
            groups[group] = parser.add_argument_group(group, GROUPS[group])
        _add_field(groups[group], fields[name])


def _add_field(group: Any, of: dataclasses.Field[Any]) -> None:
    described = about(of)
    if described.off is not None:
        group = group.add_mutually_exclusive_group()
        switch, help = described.off
        group.add_argument(switch, action="store_true", help=help)
    how: dict[str, Any] = {"action": "store_true"}
    if not isinstance(of.default, bool):
        how = {"type": described.parse, "metavar": described.metavar}
        if described.choices:
            how["choices"] = described.choices
        if of.default is dataclasses.MISSING:
            how["required"] = True
        else:
            how["default"] = of.default
        if of.default == ():
            how["nargs"] = "+"
    group.add_argument(*flags_of(of), help=described.help, **how)


def _given(args: argparse.Namespace, flag: str) -> Any:
    return getattr(args, flag.removeprefix("--").replace("-", "_"))


def _value(args: argparse.Namespace, of: dataclasses.Field[Any]) -> Any:
    off = about(of).off
    if off is not None and _given(args, off[0]):
        return "none"
    value = _given(args, flags_of(of)[-1])
    if of.default is True:
        return not value
    return tuple(value) if isinstance(value, list) else value


def inputs_of(args: argparse.Namespace) -> Inputs:
    """The files of a command line that was parsed."""
    return Inputs(**{name: _value(args, of) for name, of in fields_of(Inputs).items()})


def options_of(args: argparse.Namespace) -> Options:
    """The options of a command line that was parsed, with absolute paths."""
    values = {name: _value(args, of) for name, of in fields_of(Options).items()}
    return Options(**values).absolute()


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare that a command prints JSON, or writes it."""
    parser.add_argument(
        "--json",
        type=Path,
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help=f"print {what} to stdout instead of a table, or write it into a file",
    )

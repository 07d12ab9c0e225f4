"""Dataclass fields that say what they are for, how commands spell them, and where they appear."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class About:
    """What a field of a request is for, and where it appears.

    Attributes:
        help: Its sentence in the help of a command.
        flags: On the command line; () is the field's name.
        metavar: What stands for the value in the help.
        choices: Values on the command line, if there are only these.
        parse: Makes the value from the text of the command line.
        off: An option of its own that sets "none", and its sentence.
        group: Of the options in the help.
        heading: Among the parameters in a report; None is the field's name, "" is not shown.
        text: The value as a report shows it, where `shown` does not know; "" is not shown.
        record: Whether the value decides the result, so that a cohort registers a pair again when
            it has changed: always written, only where it is not the default, or never.
        as_recorded: What is written of the value.
    """

    help: str
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    off: tuple[str, str] | None = None
    group: str = ""
    heading: str | None = None
    text: Callable[[Any], str] | None = None
    record: Literal["always", "unless default", "never"] = "unless default"
    as_recorded: Callable[[Any], Any] = lambda value: value

    def shown(self, value: Any) -> str:
        """The value as a report shows it; "" is not shown."""
        if self.text is not None:
            return self.text(value)
        if isinstance(value, tuple):
            return ", ".join(map(self.shown, value))
        if isinstance(value, Path):
            return value.name
        if isinstance(value, bool):
            return "yes" if value else ""
        return "" if value is None else str(value)


def about(of: dataclasses.Field[Any]) -> About:
    """What a field of `Inputs` or `Options` is for, and where it appears."""
    described: About = of.metadata["about"]
    return described


def flags_of(of: dataclasses.Field[Any]) -> tuple[str, ...]:
    """How the command line spells a field, the long form last."""
    return about(of).flags or (f"--{of.name.replace('_', '-')}",)


def heading_of(of: dataclasses.Field[Any]) -> str:
    """The name of a field among the parameters in a report; "" is not shown."""
    heading = about(of).heading
    return of.name.replace("_", " ") if heading is None else heading


def whole(least: int, most: int = 10**6) -> Callable[[str], int]:
    """What reads a whole number from the command line, and refuses all others."""

    def parse(text: str) -> int:
        is_number = text.isascii() and text.isdecimal() and len(text) < 10
        if not (is_number and least <= int(text) <= most):
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {least} to {most}, got {text[:40]}"
            )
        return int(text)

    return parse


def option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A field that decides the result, as far as `more` does not say otherwise."""
    return field(default=default, metadata={"about": About(help, flags, **more)})


def aside(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A field that does not decide the result and is not among a report's parameters."""
    return option(default, help, *flags, heading="", record="never", **more)

"""A training's options: dataclasses with a sentence per field, read from a TOML file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tomllib
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from paramorph_rt.errors import ParamorphError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Section = TypeVar("Section")


class OptionError(ParamorphError, ValueError):
    """A configuration file, or a single option, that cannot be used."""


def option(default: Any, help: str, choices: Iterable[str] = ()) -> Any:
    """A dataclass field that a configuration file can set, with its one-sentence description."""
    return field(default=default, metadata={"help": help, "choices": tuple(choices)})


def check_range(
    section: Any, names: Iterable[str], least: float = 0, most: float = math.inf
) -> None:
    """Refuse an option of a section that lies outside.

    Raises:
        OptionError: One of the named does.
    """
    for name in names:
        if not least <= (value := getattr(section, name)) <= most:
            within = f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"
            raise OptionError(f"{name}: expected {within}, got {value}.")


def add_config_options(p: argparse.ArgumentParser, *, training: bool = True) -> None:
    """What commands that read a training's file have in common.

    Args:
        p: Gets the options.
        training: Whether the command trains, and so can resume.
    """
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", type=Path, metavar="FILE", help="TOML file of a training")
    if training:
        what.add_argument("--options", action="store_true", help="print every option and stop")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.OPTION=VALUE",
        help="stronger than the file; may be repeated",
    )
    p.add_argument("--out", metavar="DIR", help="run folder (short for --set run.out=…)")
    if training:
        p.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
        p.add_argument("--threads", type=int, help="CPU threads per process")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """--set and --out of `add_config_options`, as `read_table` takes them."""
    return [*args.set, f"run.out={json.dumps(args.out)}"] if args.out else args.set


def read_sections(
    path: str | Path, kinds: Mapping[str, type], overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """The sections of a TOML file; `overrides` and errors as of `read_table` and `from_table`."""
    table = read_table(path, overrides)
    if unknown := set(table) - set(kinds):
        raise OptionError(
            f"{path}: expected the sections {', '.join(kinds)}, got "
            f"{', '.join(sorted(unknown))}; see --options."
        )
    return {name: from_table(kind, name, table.get(name, {})) for name, kind in kinds.items()}


def read_table(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """Sections and options of a TOML file, with `section.option=value` overrides in TOML syntax.

    A value that is not TOML is taken as a string, so that paths need no quotes.

    Raises:
        OptionError: Not a readable TOML file of sections, or an override of another form.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"{path}: expected a TOML file, got {error}; see --options.") from error
    loose = [name for name, section in table.items() if not isinstance(section, dict)]
    if loose:
        raise OptionError(
            f"{path}: expected every option in a section, got {', '.join(loose)} outside; "
            "see --options."
        )
    for override in overrides:
        name, equals, value = override.partition("=")
        section, dot, key = name.partition(".")
        if not (equals and dot and key):
            raise OptionError(f"--set: expected SECTION.OPTION=VALUE, got {override}.")
        table.setdefault(section, {})[key] = _toml_value(value)
    return table


def from_table(kind: type[Section], name: str, values: Mapping[str, Any]) -> Section:
    """An instance of the dataclass `kind` from the section `name` of a configuration file.

    Raises:
        OptionError: An option that `kind` lacks, of another type, or not among its choices.
    """
    known = {f.name: f for f in _options(kind)}
    types = get_type_hints(kind)
    checked = {}
    for key, value in values.items():
        if key not in known:
            raise OptionError(f"[{name}] {key}: expected one of {', '.join(known)}; see --options.")
        checked[key] = _checked(f"[{name}] {key}", value, types[key])
        choices = known[key].metadata["choices"]
        if choices and checked[key] not in choices:
            raise OptionError(f"[{name}] {key}: expected {' or '.join(choices)}, got {value}.")
    return kind(**checked)


def toml_text(sections: Mapping[str, Any]) -> str:
    """A TOML file of the sections, each a dataclass (its defaults) or an instance of one.

    Every option is preceded by its description, so the text documents itself.
    """
    lines = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        for f in _options(section):
            value = f.default if isinstance(section, type) else getattr(section, f.name)
            value = list(value) if isinstance(value, tuple) else value
            choices = " | ".join(f.metadata["choices"])
            lines.append(f"# {f.metadata['help']}" + (f": {choices}" if choices else ""))
            lines.append(f"{f.name} = {json.dumps(value, ensure_ascii=False)}")
        lines.append("")
    return "\n".join(lines)


def _options(section: Any) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(section) if "help" in f.metadata]


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _checked(name: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        of = get_args(kind)
        length = None if of[-1] is Ellipsis else len(of)
        if not isinstance(value, list) or (length is not None and len(value) != length):
            wanted = "a list" if length is None else f"a list of {length}"
            raise OptionError(f"{name}: expected {wanted}, got {value!r}.")
        return tuple(_checked(name, item, of[0]) for item in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise OptionError(f"{name}: expected {kind.__name__}, got {value!r}.")
    return value

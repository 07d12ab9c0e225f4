"""Writes Boutiques descriptors of commands into boutiques/, from their parser: `make docs` runs it.

Platforms such as CBRAIN and Nipype run a command by its descriptor.

Source: Boutiques descriptor schema 0.5, https://boutiques.github.io
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from paramorph_rt import __version__
from paramorph_rt.cli import build_parser
from paramorph_rt.cli.layout import commands_of
from paramorph_rt.results import outputs

FOLDER = Path(__file__).with_name("boutiques")
COMMANDS = ("infer", "cohort", "bids")
# What is written and need not exist before.
WRITTEN = ("out_dir",)
RESULTS = {
    "infer": {
        "warped": outputs.WARPED,
        "displacement": outputs.DISPLACEMENT,
        "affine": outputs.AFFINE,
        "warped_labels": outputs.WARPED_LABELS,
        "inverse_displacement": outputs.INVERSE,
        "metrics": outputs.METRICS,
        "report": outputs.REPORT,
    },
    "cohort": {"summary": "summary.json", "page": "summary.html"},
    "bids": {"description": "dataset_description.json", "summary": "summary.json"},
}


def texts() -> dict[str, str]:
    """Content of each file by its name."""
    parsers = commands_of(build_parser())
    return {
        f"paramorph-rt-{name}.json": json.dumps(descriptor(name, parsers[name]), indent=2) + "\n"
        for name in COMMANDS
    }


def descriptor(command: str, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What Boutiques is told of a command."""
    actions = [action for action in parser._actions if action.dest != "help"]
    # Positional arguments first: an option may take any number of values.
    actions.sort(key=lambda action: bool(action.option_strings))
    keys = " ".join(_key(action) for action in actions)
    groups = [
        [action for action in group._group_actions if action in actions]
        for group in parser._mutually_exclusive_groups
    ]
    return {
        "name": parser.prog,
        "description": " ".join((parser.description or "").split()),
        "tool-version": __version__,
        "schema-version": "0.5",
        "command-line": f"{parser.prog} {keys}",
        "inputs": [_input(action) for action in actions],
        "groups": [
            {
                "id": "_or_".join(action.dest for action in members),
                "name": " or ".join(_flag(action) or action.dest for action in members),
                "members": [action.dest for action in members],
                "mutually-exclusive": True,
            }
            for members in groups
        ],
        "output-files": [
            {
                "id": f"result_{name}",
                "name": file,
                "path-template": f"[OUT_DIR]/{file}",
                "optional": True,  # --bids-names gives them others
            }
            for name, file in RESULTS[command].items()
        ],
        "tags": {"domain": ["neuroinformatics", "image registration"]},
    }


def _input(action: argparse.Action) -> dict[str, Any]:
    flag = _flag(action)
    found: dict[str, Any] = {
        "id": action.dest,
        "name": action.dest.replace("_", " "),
        "description": " ".join((action.help or "").split()),
        "value-key": _key(action),
        "type": _type(action),
        "optional": not action.required or action.nargs == "?",
    }
    if flag:
        found["command-line-flag"] = flag
    if action.choices is not None:
        found["value-choices"] = list(action.choices)
    if found["type"] == "Number":
        found["integer"] = True
    if action.nargs == "+":
        found["list"] = True
    return found


def _type(action: argparse.Action) -> str:
    if action.nargs == 0:
        return "Flag"
    if action.type is Path and action.dest not in WRITTEN:
        return "File"
    return "String" if action.type in (None, Path) else "Number"


def _flag(action: argparse.Action) -> str | None:
    return next((name for name in action.option_strings if name.startswith("--")), None)


def _key(action: argparse.Action) -> str:
    return f"[{action.dest.upper()}]"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")

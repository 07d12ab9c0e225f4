"""`paramorph-rt models`: which models come along, and what each is for."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..bundle import Bundle

_EPILOG = """
examples:
  paramorph-rt models
  paramorph-rt models --json
  paramorph-rt infer --moving m.nii.gz --fixed f.nii.gz --out-dir OUT --model brain-t1-small
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "models",
        help="list the models that come along, and what each is for",
        description="List the models that come with the package, the default one first: what "
        "images each was made for, its licence, what it reached on which data, and where not to "
        "use it. The names can be given to --model; auto takes the first that was made for a pair.",
        epilog=_EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Look, print."""
    from ..bundle import candidates, load_bundle

    models = [described(load_bundle(path)) for path in candidates()]
    print(json.dumps(models) if args.json else "\n\n".join(map(_paragraph, models)))
    return 0


def described(bundle: Bundle) -> dict[str, Any]:
    """What a bundle says of its model; None where it does not."""
    card, domain = bundle.card, bundle.domain or {}
    return {
        "name": bundle.name,
        "folder": str(bundle.folder),
        "made_for": domain.get("of"),
        "license": card.get("license"),
        "results": card.get("results", []),
        "limits": card.get("limits"),
        "networks": [
            kind
            for kind, networks in (
                ("registration", bundle.networks),
                ("features", bundle.feature_networks),
            )
            if networks
        ],
    }


def _paragraph(model: dict[str, Any]) -> str:
    lines = [("made for", model["made_for"]), ("licence", model["license"])]
    for result in model["results"]:
        figures = ", ".join(f"{name} {value}" for name, value in result.items() if name != "on")
        lines.append(("reached", f"{figures} on {result['on']}"))
    lines += [("limits", model["limits"]), ("networks", " and ".join(model["networks"]))]
    return "\n".join([model["name"], *(f"  {what:9} {text}" for what, text in lines if text)])

"""What engines cost before they run: seconds to build, size, memory on the device; needs no GPU."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundles import add_model_option, named_bundles
from paramorph_export.engine import add_engines
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import exit_code
from record import write_result
from report import markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paramorph_rt.bundle import Bundle

COLUMNS = (
    ("network", "label", ""),
    ("passes", "passes", "d"),
    ("grid", "grid", ""),
    ("precision", "precision", ""),
    ("target", "compute_capability", ""),
    ("build, s", "build_seconds", ".0f"),
    ("ONNX file, MB", "network_mb", ".1f"),
    ("engine, MB", "engine_mb", ".1f"),
    ("of these weights", "weights_mb", ".1f"),
    ("activations, MB", "activations_mb", ".0f"),
)


def measure(
    label: str, bundle: Bundle, targets: Sequence[str], precisions: Sequence[str], flavour: str
) -> list[dict[str, Any]]:
    """Build in a copy of the bundle; a row per engine.

    Raises:
        ExportError: A build failed.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(bundle.folder, copy)
        for precision in precisions:
            for entry in add_engines(copy, targets, flavour, precision):
                size = load_bundle(copy).manifest["files"]
                rows.append(
                    {
                        "label": label,
                        "passes": bundle.manifest["network"].get("passes", 1),
                        "grid": "×".join(map(str, entry["shape"])),
                        "network_mb": size[entry["network"]]["bytes"] / 1e6,
                        "engine_mb": size[entry["file"]]["bytes"] / 1e6,
                        "weights_mb": entry["weights_bytes"] / 1e6,
                        "activations_mb": entry["device_memory_bytes"] / 1e6,
                        **{
                            key: entry[key]
                            for key in (
                                "flavour",
                                "version",
                                "compute_capability",
                                "precision",
                                "build_seconds",
                                "network_sha256",
                            )
                        },
                    }
                )
    return rows


def table(result: dict[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    first = result["rows"][0]
    return (
        f"# {name}\n\n"
        f"Written by `benchmarks/engines.py` from `{name}.json`: {first['flavour']} "
        f"{first['version']} on two cores of {result['processor']} without a GPU, commit "
        f"{result['commit']}.\n\n"
        "MB are 10⁶ bytes. Weights and activations are what the library reports; it reserves the "
        "activations on the device when a context is created. What an engine holds beyond its "
        "weights is the text of its kernels, about 145 kB each, which the library compiles on the "
        "card.\n\n" + markdown_table(result["rows"], COLUMNS)
    )


def run(args: argparse.Namespace) -> None:
    """Measure; write the JSON and the table."""
    rows = [
        row
        for label, bundle in named_bundles(args.model).items()
        for row in measure(label, bundle, args.target, args.precision, args.flavour)
    ]
    path = write_result(args.name, {"rows": rows}, packages=[f"{rows[0]['flavour']}-cu13"])
    page = table(json.loads(path.read_text(encoding="utf-8")), path.stem)
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    print(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add_model_option(parser)
    add("--target", nargs="+", default=["rtx3080"], help="as of export/build_engine.py")
    add("--precision", nargs="+", default=["fp16"], help="of the bundle's networks")
    add("--flavour", default="tensorrt-rtx", help="(default: %(default)s)")
    add("--name", default="engines", help="of the result files (default: %(default)s)")
    args = parser.parse_args()
    return exit_code("engines.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

"""What every result file says about where it came from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from paramorph_rt.bundle import Bundle

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "onnxruntime", "onnx", "SimpleITK", "nibabel", "numpy")


def add_run_options(parser: argparse.ArgumentParser, name: str, runs: int, of: str) -> None:
    """`--runs`, `--threads` and `--name`.

    Args:
        name: Of the result files, unless another is given.
        runs: How many, unless told otherwise.
        of: What is run so often.
    """
    add = parser.add_argument
    add("--runs", type=int, default=runs, help=f"{of} (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, default=cores, help="of every engine (default: all cores)")
    add("--name", default=name, help="of the result files (default: %(default)s)")


def write_result(
    name: str, content: dict[str, Any], packages: Sequence[str] = (), folder: Path | None = None
) -> Path:
    """Write `results/NAME.json` with machine, versions and commit beside the content.

    Args:
        name: Of the file.
        content: What was measured.
        packages: Besides `PACKAGES`, whose versions matter.
        folder: Instead of `RESULTS`, made if it does not exist.
    """
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    partial = path.with_suffix(".partial")  # who cuts a benchmark short keeps what there was
    partial.write_text(
        json.dumps({**_origin(packages), **content}, indent=1) + "\n", encoding="utf-8"
    )
    partial.replace(path)
    return path


def write_page(result: Path, page: str) -> None:
    """Write a result's Markdown page beside its JSON, and print both."""
    result.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    print(result)


def weights_sha256(bundle: Bundle) -> str | None:
    """Of the weights that a bundle was exported from."""
    return bundle.manifest.get("provenance", {}).get("weights_sha256")


def _origin(packages: Sequence[str]) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*PACKAGES, *packages)},
        "commit": _commit(),
    }


def _commit() -> str:
    """Empty for a copy without history, or where git is not installed."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        encoding="utf-8",
        check=False,
    ).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

"""Result files: what was measured, by which machine, versions and commit."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramorph_rt.errors import ParamorphError

if TYPE_CHECKING:
    from paramorph_rt.bundle import Bundle

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "onnxruntime", "onnx", "SimpleITK", "nibabel", "numpy")

Row = dict[str, Any]
Result = Mapping[str, Any]


class BenchmarkError(ParamorphError, ValueError):
    """A benchmark that cannot be run as it was called."""


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_result(
    name: str, content: Mapping[str, Any], packages: Sequence[str] = (), folder: Path | None = None
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


class Rows(list[Row]):
    """The rows of a long run; the result file has each as soon as it is measured.

    Args:
        name: Of the result file.
        content: What the file says besides its rows.
        packages: Besides `PACKAGES`, whose versions matter.
        resume: Begin with the rows of the file that is there, except those that failed.

    Raises:
        BenchmarkError: The file that is there was measured with other threads or models.
    """

    def __init__(
        self, name: str, content: Row, packages: Sequence[str] = (), resume: bool = False
    ) -> None:
        super().__init__()
        self._name, self._content, self._packages = name, dict(content), packages
        self.path = RESULTS / f"{name}.json"
        if resume and self.path.is_file():
            self._resume(read_result(self.path))

    def _resume(self, before: Result) -> None:
        for key in ("threads", "models"):
            if before.get(key) != self._content.get(key):
                raise BenchmarkError(
                    f"{self.path.name}: expected a result of the same {key} to go on with "
                    f"({self._content.get(key)}), got one of {before.get(key)}; measure all again, "
                    "without --resume."
                )
        self.extend(row for row in before["rows"] if "error" not in row)
        self._content["resumed_from"] = sorted({*before.get("resumed_from", ()), before["commit"]})

    def without(self, **keys: Any) -> bool:
        """Whether no row has these values."""
        return not any(keys.items() <= row.items() for row in self)

    def note(self, row: Row) -> None:
        """Print a row and write all."""
        self.append(row)
        print(json.dumps(row, ensure_ascii=False), file=sys.stderr, flush=True)
        self.write()

    def write(self, **more: Any) -> Path:
        """Write the result."""
        return write_result(self._name, {**self._content, **more, "rows": self}, self._packages)


def check_known(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Whether an option names what there is.

    Raises:
        BenchmarkError: It names something else.
    """
    known = dict.fromkeys(known)
    if unknown := [name for name in names if name not in known]:
        raise BenchmarkError(
            f"{option}: expected some of {', '.join(known)}, got {unknown[0]}; correct the option."
        )


def succeeded(row: Row) -> Row:
    """A row that has no `error`.

    Raises:
        BenchmarkError: It has one.
    """
    if "error" in row:
        raise BenchmarkError(
            f"expected a process that ends well, got {row['error']}; correct that first."
        )
    return row


def weights_sha256(bundle: Bundle) -> str | None:
    """Of the weights that a bundle was exported from."""
    return bundle.provenance.get("weights_sha256")


def version_of(package: str) -> str | None:
    """Of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _origin(packages: Sequence[str]) -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "versions": {name: version_of(name) for name in (*PACKAGES, *packages)},
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

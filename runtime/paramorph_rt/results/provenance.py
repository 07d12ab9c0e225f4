"""How a result came about: software, options, inputs and model by their content, machine, date.

Part of it decides what the result is (`facts_of`); by that a cohort knows a finished pair again.
"""

from __future__ import annotations

import hashlib
import os
import platform
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..bundle import AUTO_MODEL, NO_MODEL
from ..request import record
from ..system.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..registration import Registration
    from ..request import Inputs, Options

# Whose versions can change results.
PACKAGES = (
    "paramorph-rt",
    "numpy",
    "SimpleITK",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
)
# Headers whose voxels lie in another file of the same name.
DETACHED = (".hdr", ".img", ".mhd", ".nhdr", ".hdr.gz", ".img.gz")


def facts_of(inputs: Inputs, options: Options, register: Registration) -> dict[str, Any]:
    """All that decides a pair's results: contents, options, model and versions, no file names.

    Returns:
        "software", "options", "inputs" (SHA-256 by what a file is), "model".
    """
    return {
        "software": installed_versions(),
        "options": record(options) | {"model": AUTO_MODEL if register.is_free else None},
        "inputs": {role: content_hash(path) for role, path in files_of(inputs, options).items()},
        "model": _model(options, register),
    }


def provenance_of(
    inputs: Inputs, options: Options, register: Registration, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The block `provenance` of metrics.json and record.json.

    Args:
        inputs: Files of the registration.
        options: Of the registration.
        register: What registered it.
        facts: As `facts_of` returned them before; None calls it now.
    """
    facts = facts_of(inputs, options, register) if facts is None else facts
    paths = files_of(inputs, options)
    return {
        **facts,
        "software": {name: version for name, version in facts["software"].items() if version},
        "options": {name: value for name, value in facts["options"].items() if value is not None},
        "inputs": {
            role: {"path": str(paths[role].absolute()), "sha256": digest}
            for role, digest in facts["inputs"].items()
        },
        "threads": options.threads or os.cpu_count(),
        "platform": platform_of() | {"host": platform.node()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def facts_in(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that a block was made from.

    Raises:
        KeyError: The block has another form, and so for TypeError.
    """
    return {
        **{part: dict(provenance[part]) for part in ("software", "options", "model")},
        "inputs": {role: entry["sha256"] for role, entry in provenance["inputs"].items()},
    }


def platform_of() -> dict[str, str]:
    """Where this runs, without the name of the machine."""
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def files_of(inputs: Inputs, options: Options) -> dict[str, Path]:
    """Every file that is read, by its role."""
    return inputs.files() | options.files()


@lru_cache(maxsize=1)
def installed_versions() -> dict[str, str | None]:
    """Versions of `PACKAGES`; None is not installed."""

    def installed(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {package: installed(package) for package in PACKAGES}


def content_hash(path: Path) -> str:
    """SHA-256 of a file, with its detached voxels, or of a folder's files and their names.

    A file that has not changed since it was last hashed is not read again.
    """
    detached = next((end for end in DETACHED if path.name.endswith(end)), None)
    if path.is_dir():
        parts = sorted(p for p in path.rglob("*") if p.is_file())
    elif detached:
        name = path.name.removesuffix(detached)
        beside = (p for p in path.parent.iterdir() if p.name.startswith(f"{name}."))
        parts = sorted(p for p in beside if p.is_file())
    else:
        return sha256_of(path)
    whole = hashlib.sha256()
    for part in parts:
        whole.update(f"{part.relative_to(path.parent)}\0{sha256_of(part)}".encode())
    return whole.hexdigest()


def _model(options: Options, register: Registration) -> dict[str, Any]:
    """Of those that may run; which one did, the metrics say."""
    levels = options.levels
    models = register.candidates(levels)
    if not models:
        return {"name": NO_MODEL}
    engine = models[0].engine(levels)
    files: dict[str, str] = {}
    for model in models:
        bundle = model.bundle.of_features if model.has_features(levels) else model.bundle
        used = bundle.engines if engine.name.startswith("tensorrt") else bundle.networks
        within = "" if len(models) == 1 else f"{bundle.name}/"
        files |= {f"{within}{f}": bundle.sha256(f) for entry in used for f in entry.files}
    return {
        "name": ", ".join(model.bundle.name for model in models),
        "sha256": files,
        "backend": engine.name,
        "precision": engine.precision,
    }

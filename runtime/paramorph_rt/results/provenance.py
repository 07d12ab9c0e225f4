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
from ..refinement.settings import levels_of
from ..system.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..pair import Pair, Settings
    from ..registration import Registration

# Whose versions can change results.
PACKAGES = (
    *("paramorph-rt", "numpy", "SimpleITK", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13"),
)
# Headers whose voxels lie in another file of the same name.
DETACHED = (".hdr", ".img", ".mhd", ".nhdr", ".hdr.gz", ".img.gz")


def facts_of(pair: Pair, settings: Settings, register: Registration) -> dict[str, Any]:
    """All that decides a pair's results: contents, options, model and versions, no file names.

    Returns:
        "software", "options", "inputs" (SHA-256 by what a file is), "model".
    """
    return {
        "software": installed_versions(),
        "options": _options(settings) | {"model": AUTO_MODEL if register.is_free else None},
        "inputs": {role: content_hash(path) for role, path in files_of(pair, settings).items()},
        "model": _model(settings, register),
    }


def provenance_of(
    pair: Pair, settings: Settings, register: Registration, facts: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The block `provenance` of metrics.json and record.json.

    Args:
        pair: Whose results they are.
        settings: What was asked of it.
        register: What registered it.
        facts: As `facts_of` found them before; None finds them now.
    """
    facts = facts_of(pair, settings, register) if facts is None else facts
    paths = files_of(pair, settings)
    return {
        **facts,
        "software": {name: found for name, found in facts["software"].items() if found},
        "options": {name: value for name, value in facts["options"].items() if value is not None},
        "inputs": {
            role: {"path": str(paths[role].absolute()), "sha256": digest}
            for role, digest in facts["inputs"].items()
        },
        "threads": settings.threads or os.cpu_count(),
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


def files_of(pair: Pair, settings: Settings) -> dict[str, Path]:
    """Every file that is read, by what it is."""
    files = pair.files()
    if settings.output_grid not in ("fixed", "moving"):
        files["output_grid"] = Path(settings.output_grid)
    if settings.label_names is not None:
        files["label_names"] = settings.label_names
    return files


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


def _options(settings: Settings) -> dict[str, Any]:
    """What was asked for and decides the result; None is the same as not asked for."""
    affine, grid = settings.affine, settings.output_grid
    if isinstance(affine, bool):
        affine = "auto" if affine else "none"  # type: ignore[assignment]
    return {
        "affine": affine,
        "inverse": settings.inverse,
        "output_grid": grid if grid in ("fixed", "moving") else "file",
        "interpolation": settings.interpolation,
        "surfaces": None if settings.surfaces else False,
        "refine": settings.refine,
        "apply_to_all": settings.apply_to_all or None,
        "reference_volume": settings.reference_volume,
        "analyze_orientation": settings.analyze_orientation,
    }


def _model(settings: Settings, register: Registration) -> dict[str, Any]:
    """Of those that may run; which one did, the metrics say."""
    levels = levels_of(settings.refine)
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

"""The manifest of a bundle, read and written: the only module that knows its keys."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..refinement.settings import Level
from ..system.files import check_regular, parse_json, read_bytes, sha256_of
from ..system.staging import staged_file
from .contents import Bundle, EngineEntry, GridSpec, InputSpec, IntensitySpec, NetworkEntry
from .names import (
    DEVICES,
    FORMAT,
    FORMAT_VERSION,
    INPUTS,
    LIBRARIES,
    MANIFEST,
    OUTPUTS,
    PRECISIONS,
    SAMPLING_CONVENTIONS,
)
from .signatures import check_signature

#: Voxels along an axis of a network's grid.
LARGEST_SIDE = 2048
# What the vectors of a displacement are.
_DISPLACEMENT = {"unit": "voxel", "channel_order": "axis", "direction": "fixed-to-moving"}


def load_bundle(path: str | Path) -> Bundle:
    """Read a manifest; check it, and that every file it lists is there in its size.

    Raises:
        BundleError: No bundle there, one without a signature that is required, an unknown format, a
            missing or malformed entry, or a file that is missing, of another size, or outside the
            bundle.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    try:
        bundle = _bundle_of(folder, manifest)
        _check_files(bundle)
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as err:
        what = f"no entry {err}" if isinstance(err, KeyError) else str(err)
        raise BundleError(
            f"{folder / MANIFEST}: expected the entries of format version {FORMAT_VERSION}, got "
            f"{what}; export the bundle again."
        ) from err
    return bundle


def _bundle_of(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    grid, intensity = manifest["grid"], manifest["intensity"]
    features, refined = manifest.get("features", {}), manifest.get("refined", {})
    for key, value in _DISPLACEMENT.items():
        _one_of((value,), manifest["displacement"][key])
    return Bundle(
        name=str(manifest["name"]),
        folder=folder,
        inputs=InputSpec(
            GridSpec(
                _shape(grid["shape"]),
                _spacing(grid["spacing_mm"]),
                _orientation(grid["orientation"]),
            ),
            _percentiles(intensity["lower_percentile"], intensity["upper_percentile"]),
        ),
        sampling=_one_of(SAMPLING_CONVENTIONS, manifest["sampling"]["convention"]),
        networks=tuple(_network(entry) for entry in manifest["networks"]),
        engines=tuple(_engine(entry) for entry in manifest["engines"]),
        manifest=manifest,
        feature_networks=tuple(map(_network, features.get("networks", ()))),
        smoothing=_positive((features or refined).get("smoothing", 1.0)),
        refined=tuple(Level(**level) for level in refined.get("levels", ())),
    )


def _check_files(bundle: Bundle) -> None:
    """Refuse a bundle whose networks and engines are not all listed, and there in their size."""
    sizes = {name: _listed(entry) for name, entry in bundle.manifest["files"].items()}
    networks = bundle.networks + bundle.feature_networks
    entries: list[NetworkEntry | EngineEntry] = [*networks, *bundle.engines]
    unlisted = {file for entry in entries for file in entry.files} - set(sizes)
    if unlisted or not networks:
        raise ValueError(f"files {sorted(sizes)} without {sorted(unlisted) or 'a network'}")
    for name, size in sizes.items():
        _check_file(bundle.folder, name, size)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest as it is, if it is one of this format's version.

    Raises:
        BundleError: No bundle there, one without a signature that is required, or an unknown
            format.
    """
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise BundleError(
            f"{folder}: expected a bundle (a folder with {MANIFEST}), found none; check the path."
        )
    content = read_bytes(path, "the manifest of a bundle", BundleError)
    check_signature(path, content)
    manifest = parse_json(content.decode("utf-8", "replace"), str(path), BundleError)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise BundleError(f'{path}: expected the format "{FORMAT}", got another; check the path.')
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise BundleError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version!r}; export the bundle "
            "again, or install the paramorph-rt that wrote it."
        )
    return manifest


def new_manifest(  # what every manifest has
    name: str,
    inputs: InputSpec,
    sampling: Mapping[str, Any],
    networks: Sequence[Mapping[str, Any]],
    files: Iterable[Path],
    network: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The manifest of a new bundle, without engines.

    Args:
        name: Of the model.
        inputs: Grid and intensities that the networks expect.
        sampling: "convention" and what it means.
        networks: `network_entry` of each registration network.
        files: All files of the bundle but the manifest.
        network: Configuration of the registration network; None without one.
        **more: Further entries, such as "provenance"; those that are None are left out.
    """
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": name,
        "network": network,
        "grid": {
            "shape": list(inputs.grid.shape),
            "spacing_mm": list(inputs.grid.spacing_mm),
            "orientation": inputs.grid.orientation,
        },
        "intensity": {
            "range": [0.0, 1.0],
            "lower_percentile": inputs.intensity.lower_percentile,
            "upper_percentile": inputs.intensity.upper_percentile,
        },
        "inputs": list(INPUTS),
        "outputs": list(OUTPUTS),
        "axis_order": "D, H, W of the tensors = axes i, j, k of the grid",
        "displacement": _DISPLACEMENT,
        "sampling": dict(sampling),
        "networks": list(networks),
        "engines": [],
        **{key: value for key, value in more.items() if value is not None},
        "files": {path.name: file_entry(path) for path in files},
    }


def network_entry(entry: NetworkEntry, **more: Any) -> dict[str, Any]:
    """What the manifest says of a network, and what else was measured of it."""
    weights = {} if entry.weights is None else {"weights": entry.weights}
    return {
        "file": entry.file,
        "precision": entry.precision,
        "shape": list(entry.shape),
        "device": entry.device,
        **weights,
        **more,
    }


def engine_entry(entry: EngineEntry, log: str, **more: Any) -> dict[str, Any]:
    """What the manifest says of an engine, its build's log, and what else is recorded of it."""
    plugin = {} if entry.plugin is None else {"plugin": entry.plugin}
    return {
        "file": entry.file,
        "log": log,
        "flavour": entry.flavour,
        "version": entry.version,
        "compute_capability": entry.compute_capability,
        "precision": entry.precision,
        "shape": list(entry.shape),
        **more,
        **plugin,
    }


def file_entry(path: Path) -> dict[str, Any]:
    """What the manifest says of a file of the bundle."""
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}


def with_engines(
    manifest: Mapping[str, Any],
    entries: Sequence[dict[str, Any]],
    files: Mapping[str, Path],
) -> tuple[dict[str, Any], set[str]]:
    """A manifest with further engines, in place of those for the same purpose.

    Args:
        manifest: Of the bundle.
        entries: `engine_entry` of each.
        files: Theirs, by their names in the bundle, wherever they are now.

    Returns:
        The new manifest, and the files of the bundle that it no longer lists.
    """
    same = ("flavour", "compute_capability", "precision", "shape")
    new = [[entry[key] for key in same] for entry in entries]
    gone = [e for e in manifest["engines"] if [e[key] for key in same] in new]
    engines = [e for e in manifest["engines"] if e not in gone] + list(entries)
    # Only listed files, which loading has checked, whatever an old entry names.
    stale = (_files_of(gone) & set(manifest["files"])) - _files_of(engines)
    listed = dict(manifest["files"]) | {name: file_entry(path) for name, path in files.items()}
    listed = {name: entry for name, entry in listed.items() if name not in stale}
    return {**manifest, "engines": engines, "files": listed}, stale


def with_file(manifest: Mapping[str, Any], path: Path, **more: Any) -> dict[str, Any]:
    """A manifest that lists a new content of a file of the bundle, and says something more."""
    return {**manifest, **more, "files": {**manifest["files"], path.name: file_entry(path)}}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a bundle's folder in one step."""
    with staged_file(folder / MANIFEST) as staging:
        staging.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _files_of(entries: Iterable[Mapping[str, Any]]) -> set[str]:
    return {entry[key] for entry in entries for key in ("file", "log", "plugin") if key in entry}


def check_grid_spec(spec: GridSpec) -> None:
    """Refuse a grid that no network can have been trained on.

    Raises:
        ValueError: Its shape, spacing or orientation means nothing.
    """
    _shape(spec.shape)
    _spacing(spec.spacing_mm)
    _orientation(spec.orientation)


def _check_file(folder: Path, name: str, size: int) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"{name}: expected a path inside the bundle, got one outside; refuse it.")
    there = check_regular(path, "this file of the bundle", BundleError)
    if there != size:
        raise BundleError(f"{path}: expected {size} bytes, got {there}; copy the bundle again.")


def _network(entry: Mapping[str, Any]) -> NetworkEntry:
    weights = entry.get("weights")
    precision = _one_of(PRECISIONS, entry["precision"])
    return NetworkEntry(
        str(entry["file"]),
        precision,
        _shape(entry["shape"]),
        _one_of(DEVICES, entry.get("device", "cpu" if precision == "fp32" else "gpu")),
        None if weights is None else str(weights),
    )


def _engine(entry: Mapping[str, Any]) -> EngineEntry:
    return EngineEntry(
        str(entry["file"]),
        _one_of(tuple(LIBRARIES), entry["flavour"]),
        str(entry["version"]),
        str(entry["compute_capability"]),
        _one_of(PRECISIONS, entry["precision"]),
        _shape(entry["shape"]),
        None if entry.get("plugin") is None else str(entry["plugin"]),
    )


def _shape(values: Any) -> tuple[int, int, int]:
    result = tuple(values)
    if len(result) != 3 or not all(type(n) is int and 0 < n <= LARGEST_SIDE for n in result):
        raise ValueError(f"{_short(values)} where three numbers of voxels belong")
    return result


def _spacing(values: Any) -> tuple[float, float, float]:
    result = tuple(map(float, values))
    if len(result) != 3 or not all(1e-3 <= mm <= 1e3 for mm in result):  # NaN is none of them
        raise ValueError(f"{_short(values)} where three spacings in mm belong")
    return result


def _positive(value: Any) -> float:
    result = float(value)
    if not 0 < result < math.inf:  # NaN is not
        raise ValueError(f"{_short(value)} where a positive number belongs")
    return result


def _percentiles(lower: Any, upper: Any) -> IntensitySpec:
    result = IntensitySpec(float(lower), float(upper))
    if not 0 <= result.lower_percentile < result.upper_percentile <= 100:
        raise ValueError(f"percentiles {_short([lower, upper])}")
    return result


def _listed(entry: Any) -> int:
    """The size of a file of the bundle, whose hash must be one."""
    size, sha256 = entry["bytes"], entry["sha256"]
    if type(size) is not int or size < 0:
        raise ValueError(f"{_short(size)} where a number of bytes belongs")
    if not (isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)):
        raise ValueError(f"{_short(sha256)} where a SHA-256 belongs")
    return size


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _orientation(code: Any) -> str:
    axes = ("RL", "AP", "SI")
    if not (isinstance(code, str) and len(code) == 3) or sorted(
        next((n for n, pair in enumerate(axes) if letter in pair), -1) for letter in code
    ) != [0, 1, 2]:
        raise ValueError(f'{_short(code)} where an orientation such as "RAS" belongs')
    return code


def _one_of(allowed: tuple[str, ...], value: Any) -> str:
    if value not in allowed:
        raise ValueError(f"{_short(value)} where one of {', '.join(allowed)} belongs")
    return value

"""A model bundle: a folder with a manifest, networks and engines, verified before it is used.

This module is the only one that knows what a bundle's folder looks like inside.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .errors import BundleError
from .signatures import check_signature
from .system.files import check_regular, fresh_sha256_of, parse_json, read_bytes

MANIFEST = "manifest.json"
FORMAT = "paramorph-bundle"
FORMAT_VERSION = 2
DEFAULT_NAME = "brain-t1-small"
#: Stands for a model where none is wanted: the refinement alone.
NO_MODEL = "none"
#: Stands for the first of the shipped models that was made for a pair, or none.
AUTO_MODEL = "auto"
SAMPLING_CONVENTIONS = ("exact", "reference")
PRECISIONS = ("fp32", "fp16", "bf16")
DEVICES = ("cpu", "gpu")
FLAVOURS = ("tensorrt", "tensorrt-rtx")
#: In place of a compute capability: an engine of TensorRT for RTX for all its cards.
PORTABLE = "portable"
#: Voxels along an axis of a network's grid.
LARGEST_SIDE = 2048
_SHIPPED = Path(__file__).parent / "bundles"


@dataclass(frozen=True)
class GridSpec:
    """The grid that a network was trained on."""

    shape: tuple[int, int, int]  # voxels along the network's D, H, W = array axes i, j, k
    spacing_mm: tuple[float, float, float]
    orientation: str  # closest anatomical directions of the axes, such as "RAS"


@dataclass(frozen=True)
class IntensitySpec:
    """Percentiles that become 0 and 1; 0 and 100 mean plain min-max."""

    lower_percentile: float
    upper_percentile: float


@dataclass(frozen=True)
class InputSpec:
    """All that preprocessing must know of a network."""

    grid: GridSpec
    intensity: IntensitySpec


@dataclass(frozen=True)
class NetworkEntry:
    """An ONNX file of the bundle; its inputs and outputs are float32 at every precision."""

    file: str
    precision: str  # one of `PRECISIONS`, of the convolutions and matrix products
    shape: tuple[int, int, int]
    device: str = "cpu"  # one of `DEVICES`, for which the graph was rewritten
    weights: str | None = None  # a safetensors file beside it, which it reads its numbers from

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read when the network is loaded."""
        return (self.file,) if self.weights is None else (self.file, self.weights)


@dataclass(frozen=True)
class EngineEntry:
    """A compiled engine of the bundle, for the library version that built it and no other."""

    file: str
    flavour: str  # one of `FLAVOURS`
    version: str  # of the library, in full
    compute_capability: str  # of the GPUs that it was built for, such as "8.6", or `PORTABLE`
    precision: str
    shape: tuple[int, int, int]
    plugin: str | None = None  # file of GridSample3D's library, which it needs

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read when the engine is loaded."""
        return (self.file,) if self.plugin is None else (self.file, self.plugin)


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest can be trusted; its files are verified by `verified_path`.

    Attributes:
        name: What the manifest calls the model.
        folder: Where it lies.
        inputs: Grid and intensities that the network expects.
        sampling: "exact" (a zero displacement is the identity), or "reference" (see `field`).
        networks: ONNX files that give `output`, of the grid's shape and perhaps of others; none
            if the model consists of features alone.
        engines: What was built from them.
        manifest: Everything else, as written by the export.
        feature_networks: ONNX files that give features of both images, for the refinement.
        output: What the networks give: "displacement" (1, 3, i, j, k) in voxels, or "features"
            (2, channels, i, j, k) of the moving and the fixed image.
    """

    name: str
    folder: Path
    inputs: InputSpec
    sampling: str
    networks: tuple[NetworkEntry, ...]
    engines: tuple[EngineEntry, ...]
    manifest: Mapping[str, Any]
    feature_networks: tuple[NetworkEntry, ...] = ()
    output: str = "displacement"

    @property
    def of_features(self) -> Bundle:
        """The feature networks as a bundle of their own."""
        return replace(self, networks=self.feature_networks, engines=(), output="features")

    @property
    def main(self) -> Bundle:
        """The bundle whose networks a request for an engine is about; see `of_features`."""
        return self if self.networks else self.of_features

    @property
    def shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Voxels of all grids that there are networks for, that of `inputs` first."""
        return tuple(dict.fromkeys((self.inputs.grid.shape, *(e.shape for e in self.networks))))

    @property
    def comes_along(self) -> bool:
        """Whether it is part of the installed package, where nobody should add anything."""
        return self.folder.resolve().is_relative_to(_SHIPPED.resolve())

    def at(self, shape: tuple[int, int, int]) -> Bundle:
        """The bundle as one whose grid has another of its shapes."""
        grid = replace(self.inputs.grid, shape=shape)
        return replace(self, inputs=replace(self.inputs, grid=grid))

    def network(self, precision: str = "fp32", device: str = "cpu") -> NetworkEntry:
        """The network of a precision, at the shape of the bundle's grid.

        Args:
            precision: One of `PRECISIONS`.
            device: One of `DEVICES`. All compute the same: where there is none for this one, it is
                that for the other.

        Raises:
            BundleError: There is none.
        """
        shape = self.inputs.grid.shape
        found = [e for e in self.networks if (e.precision, e.shape) == (precision, shape)]
        for entry in sorted(found, key=lambda e: e.device != device):
            return entry
        raise BundleError(
            f"{self.name}: expected a network of precision {precision} at {shape}, got "
            f"{', '.join(f'{e.precision} at {e.shape}' for e in self.networks)}; export the bundle "
            f"with --precision {precision} and this --shape, or choose another precision."
        )

    def sha256(self, file: str) -> str:
        """The hash that the manifest records of a file of the bundle."""
        return str(self.manifest["files"][file]["sha256"])

    def network_sha256(self, entry: NetworkEntry) -> str:
        """A hash that changes with any file of a network."""
        hashes = [self.sha256(file) for file in entry.files]
        return (
            hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        )

    def verified_network(self, entry: NetworkEntry) -> Path:
        """A network's ONNX file; it and what it reads are hashed, right before they are opened.

        Raises:
            BundleError: One is missing, or its SHA-256 is not the one recorded.
        """
        for file in entry.files:
            self.verified_path(file)
        return self.folder / entry.file

    def verified_path(self, file: str) -> Path:
        """A file of the bundle, hashed; for networks `verified_network`.

        Raises:
            BundleError: It is missing, or its size or SHA-256 is not the one recorded.
        """
        path = self.folder / file
        self._check_hash(file, fresh_sha256_of(path))
        return path

    def verified_bytes(self, file: str) -> bytes:
        """A file's content, hashed as it was read, so that nobody can change it in between.

        Raises:
            BundleError: Its SHA-256 is not the one recorded.
        """
        content = (self.folder / file).read_bytes()
        self._check_hash(file, hashlib.sha256(content).hexdigest())
        return content

    def _check_hash(self, file: str, actual: str) -> None:
        expected = self.sha256(file)
        if actual != expected:
            raise BundleError(
                f"{self.folder / file}: expected SHA-256 {expected[:12]}…, got {actual[:12]}…: the "
                "file was altered; copy the bundle again from a source that you trust."
            )


def default_bundle_path() -> Path:
    """The bundle used when none is named: $PARAMORPH_MODEL, or the one of this package.

    Raises:
        BundleError: Neither exists.
    """
    if chosen := os.environ.get("PARAMORPH_MODEL"):
        return Path(chosen)
    path = _SHIPPED / DEFAULT_NAME
    if not path.is_dir():
        raise BundleError(
            f"{DEFAULT_NAME}: expected the model that comes with paramorph-rt, found none; run "
            "`python -m pip install --force-reinstall paramorph-rt`, or name a bundle."
        )
    return path


def candidates() -> list[Path]:
    """What "auto" chooses from: $PARAMORPH_MODEL alone, or the models of this package.

    Raises:
        BundleError: There is none.
    """
    first = default_bundle_path()
    if first.parent != _SHIPPED:
        return [first]
    others = sorted(path.parent for path in _SHIPPED.glob(f"*/{MANIFEST}"))
    return [first, *(path for path in others if path != first)]


def bundle_path(model: str | Path) -> Path:
    """The folder of a bundle that is given by its path, or by the name of a shipped model."""
    path, shipped = Path(model), _SHIPPED / Path(model).name
    by_name = len(path.parts) == 1 and not path.exists() and (shipped / MANIFEST).is_file()
    return shipped if by_name else path


def load_bundle(path: str | Path) -> Bundle:
    """Read a manifest; check it, and that every file it lists is there in its size.

    Raises:
        BundleError: No bundle there, one without a signature that is required, an unknown format, a
            missing or malformed entry, or a file that is missing, of another size, or outside the
            bundle.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    try:
        grid, intensity = manifest["grid"], manifest["intensity"]
        bundle = Bundle(
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
            feature_networks=tuple(map(_network, manifest.get("features", {}).get("networks", ()))),
        )
        _one_of(("voxel",), manifest["displacement"]["unit"])
        _one_of(("axis",), manifest["displacement"]["channel_order"])
        _one_of(("fixed-to-moving",), manifest["displacement"]["direction"])
        sizes = {name: _listed(entry) for name, entry in manifest["files"].items()}
        networks = bundle.networks + bundle.feature_networks
        entries: list[NetworkEntry | EngineEntry] = [*networks, *bundle.engines]
        named = {file for entry in entries for file in entry.files}
        unlisted = named - set(sizes)
        if unlisted or not networks:
            raise ValueError(f"files {sorted(sizes)} without {sorted(unlisted) or 'a network'}")
        for name, size in sizes.items():
            _check_file(folder, name, size)
    except BundleError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as err:
        what = f"no entry {err}" if isinstance(err, KeyError) else str(err)
        raise BundleError(
            f"{folder / MANIFEST}: expected the entries of format version {FORMAT_VERSION}, got "
            f"{what}; export the bundle again."
        ) from err
    return bundle


def _read_manifest(folder: Path) -> dict[str, Any]:
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
        _one_of(FLAVOURS, entry["flavour"]),
        str(entry["version"]),
        str(entry["compute_capability"]),
        _one_of(PRECISIONS, entry["precision"]),
        _shape(entry["shape"]),
        None if entry.get("plugin") is None else str(entry["plugin"]),
    )


def check_grid_spec(spec: GridSpec) -> None:
    """Refuse a grid that no network can have been trained on.

    Raises:
        ValueError: Its shape, spacing or orientation means nothing.
    """
    _shape(spec.shape)
    _spacing(spec.spacing_mm)
    _orientation(spec.orientation)


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

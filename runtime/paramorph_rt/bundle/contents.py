"""What a bundle contains, in the words of the runtime; its files are verified before use."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import BundleError
from ..refinement.settings import Level
from ..system.files import fresh_sha256_of
from .names import CHANNELS, FEATURES
from .shipped import SHIPPED


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
    """What the images of a network must be like."""

    grid: GridSpec
    intensity: IntensitySpec


@dataclass(frozen=True)
class NetworkEntry:
    """An ONNX file of the bundle; its inputs and outputs are float32 at every precision."""

    file: str
    precision: str  # one of `PRECISIONS`, of the convolutions and matrix products
    shape: tuple[int, int, int]
    device: str = "cpu"  # one of `DEVICES`, for which the graph was rewritten
    weights: str | None = None  # a safetensors file beside it, from which it reads its parameters

    @property
    def files(self) -> tuple[str, ...]:
        """Every file that is read when the network is loaded."""
        return (self.file,) if self.weights is None else (self.file, self.weights)


@dataclass(frozen=True)
class EngineEntry:
    """A compiled engine of the bundle, for the library version that built it and no other."""

    file: str
    flavour: str  # one of `LIBRARIES`
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
        smoothing: Factor on the refinement's `feature_sigma` where its features are compared.
        refined: Levels of the refinement that its networks do themselves, by features of their own;
            none if what they give is yet to be refined.
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
    smoothing: float = 1.0
    refined: tuple[Level, ...] = ()
    output: str = "displacement"

    @property
    def of_features(self) -> Bundle:
        """The feature networks as a bundle of their own."""
        return replace(self, networks=self.feature_networks, engines=(), output=FEATURES)

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
        return self.folder.resolve().is_relative_to(SHIPPED.resolve())

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Of the registration network, as it was trained; empty without one."""
        return self.manifest.get("network") or {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the export recorded of the weights."""
        return self.manifest.get("provenance", {})

    @property
    def card(self) -> Mapping[str, Any]:
        """What its model card says: license, limits, results; empty without one."""
        return self.manifest.get("card", {})

    @property
    def domain(self) -> Any:
        """The images that it was made for, see `quality.domain`; None if it does not say."""
        return self.manifest.get("domain")

    @property
    def files(self) -> tuple[str, ...]:
        """Every file but the manifest."""
        return tuple(self.manifest["files"])

    def tensors(self, what: str) -> dict[str, int]:
        """Channels of the "inputs" or "outputs" of its networks, by name.

        Raises:
            BundleError: None are listed, or unknown ones.
        """
        names = self.manifest.get(what, [])
        if not names or not set(names) <= set(CHANNELS):
            raise BundleError(
                f"{self.name}: expected {what} among {', '.join(CHANNELS)}, got "
                f"{', '.join(map(str, names)) or 'none'}; export the bundle again."
            )
        return {name: CHANNELS[name] for name in names}

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
        fitting = [e for e in self.networks if (e.precision, e.shape) == (precision, shape)]
        for entry in sorted(fitting, key=lambda e: e.device != device):
            return entry
        raise BundleError(
            f"{self.name}: expected a network of precision {precision} at {shape}, got "
            f"{', '.join(f'{e.precision} at {e.shape}' for e in self.networks)}; export the bundle "
            f"with --precision {precision} and this --shape, or choose another precision."
        )

    def size(self, file: str) -> int:
        """Bytes of a file of the bundle."""
        return int(self.manifest["files"][file]["bytes"])

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

    def verified_contents(self, entry: NetworkEntry) -> dict[str, bytes]:
        """A network's ONNX file and what it reads, by name; see `verified_bytes`.

        Raises:
            BundleError: The SHA-256 of one is not the one recorded.
        """
        return {file: self.verified_bytes(file) for file in entry.files}

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

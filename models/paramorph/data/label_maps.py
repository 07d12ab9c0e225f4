"""Label maps without images, from which images are painted: found, and brought onto fine grids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paramorph.data.subjects import DataError, is_volume, stem
from paramorph.options import option
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import network_grid
from paramorph_rt.images.volume import load_labels

if TYPE_CHECKING:
    from collections.abc import Collection

    from jaxtyping import Integer

    from paramorph_rt.bundle import GridSpec

#: A map's voxels are smaller than the network grid's by this, so that moving it costs no shape,
#: and it is larger than that grid by this, so that moving it brings in what lies beside.
FINER, LARGER = 1.5, 1.3


@dataclass(frozen=True)
class LabelMapConfig:
    """Label maps without images; images of them are painted as [synthesis] says."""

    root: str = option("", "folder of label maps; empty: none")
    pattern: str = option("**/*", "of their paths in it, with *, ? and **")
    validation: int = option(0, "of them, the last by name, are kept from training")


@dataclass(frozen=True)
class LabelMap:
    """One label map about the middle of its learned labels.

    Attributes:
        name: Its file's.
        labels: Values of its file, on voxels `FINER` than the network grid's.
        extent: Of the network grid along D, H and W, as shares of the map's.
    """

    name: str
    labels: Integer[np.ndarray, "i j k"]
    extent: tuple[float, float, float]


def load_label_maps(
    config: LabelMapConfig, grid: GridSpec, learned: Collection[int]
) -> tuple[list[LabelMap], list[LabelMap]]:
    """The maps to train and to validate on.

    Args:
        config: Where they lie.
        grid: Of the network.
        learned: Labels whose middle is the map's; empty is all but 0.

    Raises:
        DataError: No folder, or too few maps in it.
        VolumeError: A file that is not a label map.
    """
    if not config.root:
        return [], []
    root = Path(config.root).expanduser()
    paths = sorted(path for path in root.glob(config.pattern) if is_volume(path))
    if len(paths) <= config.validation:
        raise DataError(
            f"{root}: expected more than {config.validation} label maps {config.pattern}, found "
            f"{len(paths)}; check [label_maps] root, pattern and validation."
        )
    maps = [_loaded(path, grid, learned) for path in paths]
    count = len(maps) - config.validation
    return maps[:count], maps[count:]


def _loaded(path: Path, spec: GridSpec, learned: Collection[int]) -> LabelMap:
    labels = load_labels(path)
    inside = np.isin(labels.data, list(learned)) if learned else labels.data != 0
    index = np.argwhere(inside)
    if not len(index):
        raise DataError(
            f"{path}: expected some of the labels that are learned, got none; check [training] "
            "labels."
        )
    shape = tuple(round(n * FINER * LARGER) for n in spec.shape)
    spacing = tuple(s / FINER for s in spec.spacing_mm)
    low, high = index.min(axis=0), index.max(axis=0)
    middle = (low + high) / 2  # alone, so that no size makes the grid's spacing grow
    grid = network_grid(labels.grid, middle, middle + 1, (shape,), spacing, spec.orientation)
    extent = tuple((n - 1) * FINER / (m - 1) for n, m in zip(spec.shape, shape, strict=True))
    return LabelMap(stem(path), resample_to_grid(labels, grid, interpolation="nearest"), extent)

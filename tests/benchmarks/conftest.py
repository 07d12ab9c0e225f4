"""A folder of labelled phantoms, each deformed otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paramorph_rt.images.volume import Volume, save_labels, save_volume

from ..runtime.phantoms import (
    NETWORK_SHAPE,
    centred_grid,
    head,
    head_labels,
    volume_of,
    write_bundle,
)


def write_subject(folder: Path, name: str, orientation: str, shape, through) -> None:
    """One phantom, seen through a map of the world."""
    grid = centred_grid(orientation, shape)
    save_volume(folder / f"{name}_t1.nii.gz", volume_of(head, grid, through=through))
    save_labels(folder / f"{name}_labels.nii.gz", volume_of(head_labels, grid, through=through))


def bent(points: np.ndarray) -> np.ndarray:
    """A smooth deformation of up to 3 mm on each axis."""
    x, y, z = np.moveaxis(points, -1, 0)
    return points + 3 * np.stack([np.sin(y / 9), np.cos(z / 8), np.sin(x / 8)], axis=-1)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """Subjects `a` (LAS, deformed) and `b` (oblique)."""
    folder = tmp_path_factory.mktemp("study") / "made_up"
    folder.mkdir()
    write_subject(folder, "a", "LAS", (50, 56, 46), bent)
    write_subject(folder, "b", "oblique", (54, 58, 50), lambda points: points)
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A bundle whose network answers with no displacement."""
    folder = tmp_path_factory.mktemp("bundles") / "zero"
    return write_bundle(folder, np.zeros((3, *NETWORK_SHAPE), np.float32))


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """Where result files go instead of among the real ones."""
    import record

    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def shifted(volume: Volume, voxels: tuple[int, int, int]) -> Volume:
    """The same array, its content moved by whole voxels (none may reach the border)."""
    return Volume(np.roll(volume.data, voxels, axis=(0, 1, 2)), volume.grid, volume.name)

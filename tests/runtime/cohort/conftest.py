"""Three subjects, and options by which a pair of them takes a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramorph_rt.cohort.pairs import Pair
from paramorph_rt.images.volume import save_labels, save_volume
from paramorph_rt.request import Options

from ..phantoms import centred_grid, head, head_labels, volume_of
from .cohorts import a_to_b


@pytest.fixture
def subjects(tmp_path) -> Path:
    """Three subjects with labels."""
    folder = tmp_path / "subjects"
    folder.mkdir()
    for number, name in enumerate("abc"):
        grid = centred_grid("RAS", (30, 34, 28), (1.5, 1.5, 1.5), (number, 0, 0))
        save_volume(folder / f"{name}_t1.nii.gz", volume_of(head, grid))
        save_labels(folder / f"{name}_labels.nii.gz", volume_of(head_labels, grid))
    return folder


@pytest.fixture
def pair(subjects) -> Pair:
    return a_to_b(subjects, "x")


@pytest.fixture
def options(zero_bundle_path) -> Options:
    return Options(model=zero_bundle_path, backend="onnxruntime", threads=1, affine="none")

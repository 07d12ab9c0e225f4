"""Fixtures of the runtime tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .phantoms import NETWORK_SHAPE, smooth_displacement_vox, write_bundle

SHARED_DATA = Path(__file__).parents[2] / "../shared/data"


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    """A bundle that answers with `smooth_displacement_vox`."""
    folder = tmp_path_factory.mktemp("bundles") / "smooth"
    return write_bundle(folder, smooth_displacement_vox())


@pytest.fixture(scope="session")
def zero_bundle_path(tmp_path_factory) -> Path:
    """A bundle that answers with no displacement."""
    folder = tmp_path_factory.mktemp("bundles") / "zero"
    return write_bundle(folder, np.zeros((3, *NETWORK_SHAPE), np.float32))


@pytest.fixture(scope="session")
def brains() -> Path:
    """The folder of real validation brains."""
    folder = SHARED_DATA / "brain_t1/validation"
    if not folder.is_dir():
        pytest.skip("needs the real volumes of ../shared/data")
    return folder

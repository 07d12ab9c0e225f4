"""One process to fork from, and one good pair."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt.images.volume import Volume, save_labels, save_volume

from ..runtime.phantoms import centred_grid, head, head_labels, volume_of
from .harness import Program

if os.name != "posix":
    pytest.skip("needs fork", allow_module_level=True)


@pytest.fixture(scope="session")
def open_folder():
    """A folder that another user can reach, as pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def program(open_folder):
    """`paramorph-rt`, run in processes of its own."""
    scratch = open_folder / "streams"
    scratch.mkdir()
    found = Program(scratch)
    yield found
    found.close()


@pytest.fixture(scope="session")
def good(open_folder) -> Path:
    """A folder with a small pair of everything that a command may be given."""
    folder = open_folder / "good"
    folder.mkdir()
    grid = centred_grid("RAS", (16, 18, 14), (3.0, 3.0, 3.0))
    moved = centred_grid("LPS", (15, 17, 16), (3.2, 3.0, 2.8), (1.0, -2.0, 1.5))
    for name, where in (("fixed", grid), ("moving", moved)):
        save_volume(folder / f"{name}.nii.gz", volume_of(head, where))
        labels = volume_of(head_labels, where)
        save_labels(folder / f"{name}_labels.nii.gz", labels)
        mask = Volume((labels.data > 0).astype(np.uint8), where)
        save_labels(folder / f"{name}_mask.nii.gz", mask)
        (folder / f"{name}.csv").write_text("x,y,z\n1,2,3\n-4,5,6\n", encoding="utf-8")
    turn = sitk.AffineTransform(3)
    turn.SetTranslation((1.0, -2.0, 0.5))
    sitk.WriteTransform(turn, str(folder / "affine.tfm"))
    (folder / "names.csv").write_text("label,name\n1,left\n2,right\n7,core\n", encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


@pytest.fixture
def place(open_folder, request) -> Path:
    """An empty folder of the test's own."""
    folder = Path(tempfile.mkdtemp(prefix="case-", dir=open_folder))
    folder.chmod(0o777)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)

"""NiftyReg: deformation and displacement fields in NIfTI, affines as text.

Its world is the header's (RAS), and both map the reference (fixed) to the floating (moving) image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import TransformError
from ..geometry.field import DisplacementField
from ..images.nifti import write_nifti
from ..images.volume import load_vectors
from .matrix import read_matrix, write_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float

    from . import Images, Transform

FIELD_SUFFIXES = (".nii", ".nii.gz")
AFFINE_SUFFIXES = (".txt",)
INTENT_NAME = b"NREG_TRANS"
# intent_p1 of its files; the others are velocities and control points.
DEFORMATION, DISPLACEMENT = 0, 1


def read(path: Path, images: Images) -> Transform:
    """Read a field or an affine. Needs no image."""
    if not path.name.endswith(FIELD_SUFFIXES):
        return read_matrix(path)
    vectors, grid, header = load_vectors(path)
    kind = int(header["intent_p1"])
    if header["intent_name"].item() != INTENT_NAME or kind not in (DEFORMATION, DISPLACEMENT):
        raise TransformError(
            f"{path.name}: expected a NiftyReg deformation or displacement field, got intent "
            f"{header['intent_name'].item().decode('latin-1')!r} of kind {kind}; turn control "
            "points or velocities into a field by reg_transform -ref FIXED -def FILE FIELD."
        )
    if kind == DEFORMATION:
        vectors = (vectors - grid.positions()).astype(np.float32)
    return DisplacementField(grid, vectors)


def write_affine(path: Path, affine: Float[np.ndarray, "4 4"], images: Images) -> None:
    """Write an affine. Needs no image."""
    write_matrix(path, affine)


def write_field(path: Path, field: DisplacementField, images: Images) -> None:
    """Write a displacement field. Needs no image."""
    write_nifti(
        path,
        field.vectors_mm[:, :, :, np.newaxis, :].astype(np.float32, copy=False),
        field.grid,
        intent="vector",
        intent_name=INTENT_NAME,
        intent_p1=DISPLACEMENT,
        descrip="NiftyReg displacement in RAS mm, from this grid into the image to be warped",
    )

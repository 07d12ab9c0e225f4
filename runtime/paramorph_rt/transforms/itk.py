"""ITK and ANTs transforms: displacement fields in NIfTI, affines as ITK text.

ITK's world is LPS; both kinds of file map a point of the fixed image to the moving one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from ..errors import VolumeError
from ..field import DisplacementField
from ..nifti import write_nifti
from ..spaces import Grid, affine_from_itk, flip_vectors, itk_affine

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float


def write_displacement(path: Path, field: DisplacementField) -> None:
    """Write a field as ITK reads it: float32 (X, Y, Z, 1, 3), vector intent, LPS mm."""
    vectors = flip_vectors(field.vectors_mm.astype(np.float32, copy=False))
    write_nifti(path, vectors[:, :, :, np.newaxis, :], field.grid, intent="vector")


def read_displacement(path: Path) -> DisplacementField:
    """Read a field that ITK, ANTs or `write_displacement` wrote.

    Raises:
        VolumeError: The file is not a 5-D NIfTI of three-component vectors.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
    except (OSError, nib.filebasedimages.ImageFileError) as err:
        raise VolumeError(
            f"{path}: expected an ITK displacement field, got no readable NIfTI; check the path."
        ) from err
    if image.ndim != 5 or image.shape[3:] != (1, 3) or image.header["intent_code"] != 1007:
        raise VolumeError(
            f"{path}: expected an ITK displacement field of shape (X, Y, Z, 1, 3) with vector "
            f"intent, got shape {image.shape}; convert it first."
        )
    vectors = image.get_fdata(dtype=np.float32, caching="unchanged")[:, :, :, 0, :]
    return DisplacementField(Grid(image.shape[:3], image.affine), flip_vectors(vectors))


def write_affine(path: Path, affine: Float[np.ndarray, "4 4"]) -> None:
    """Write fixed world → moving world (RAS) as an ITK text transform."""
    sitk.WriteTransform(itk_affine(affine), str(path))


def read_affine(path: Path) -> Float[np.ndarray, "4 4"]:
    """Read a linear ITK text transform as fixed world → moving world (RAS).

    Raises:
        VolumeError: The file is no linear ITK transform.
    """
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as err:
        raise VolumeError(
            f"{path}: expected an ITK transform, got something unreadable; check the file."
        ) from err
    if not transform.IsLinear():
        raise VolumeError(
            f"{path}: expected a linear transform, got {transform.GetName()}; pass an affine."
        )
    return affine_from_itk(transform)

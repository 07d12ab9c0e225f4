"""FSL: relative or absolute warps of FNIRT and convertwarp, matrices of FLIRT.

Both speak of FSL's coordinates of the fixed and the moving image, so neither means anything
without the two images. A warp maps fixed → moving, a matrix moving → fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import TransformError
from ..geometry.field import DisplacementField
from ..geometry.spaces import Grid, fsl_from_world
from ..images.nifti import write_nifti
from ..images.volume import load_vectors
from .matrix import read_matrix, write_matrix

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float

    from . import Images, Transform

FIELD_SUFFIXES = (".nii", ".nii.gz")
AFFINE_SUFFIXES = (".mat",)
WARP_INTENT = 2006


def read(path: Path, images: Images) -> Transform:
    """Read a warp, for which the moving image is needed, or a matrix, which needs both."""
    if path.name.endswith(FIELD_SUFFIXES):
        return _read_warp(path, images.grid("moving", path.name))
    fixed, moving = images.grid("fixed", path.name), images.grid("moving", path.name)
    return (
        np.linalg.inv(fsl_from_world(moving))
        @ np.linalg.inv(read_matrix(path))
        @ fsl_from_world(fixed)
    )


def write_affine(path: Path, affine: Float[np.ndarray, "4 4"], images: Images) -> None:
    """Write a matrix, for which both images are needed."""
    moving, fixed = images.grid("moving", path.name), images.grid("fixed", path.name)
    to_moving = fsl_from_world(moving) @ affine @ np.linalg.inv(fsl_from_world(fixed))
    write_matrix(path, np.linalg.inv(to_moving))


def write_field(path: Path, field: DisplacementField, images: Images) -> None:
    """Write a relative warp, for which the moving image is needed."""
    to_fsl, moving = fsl_from_world(field.grid), images.grid("moving", path.name)
    in_world = np.linalg.inv(to_fsl) @ fsl_from_world(moving) @ field
    write_nifti(
        path,
        in_world.vectors_mm @ to_fsl[:3, :3].T.astype(np.float32),
        field.grid,
        intent=WARP_INTENT,
        descrip="FSL relative warp in FSL mm, from this grid into the image to be warped",
    )


def _read_warp(path: Path, moving: Grid) -> DisplacementField:
    vectors, grid, header = load_vectors(path)
    intent = int(header["intent_code"])
    if 2007 <= intent <= 2016:  # FNIRT's coefficients, Topup's coefficients and fields
        raise TransformError(
            f"{path.name}: expected an FSL warp field, got FSL intent {intent} (spline "
            "coefficients or a Topup field); run fnirtfileutils --in=FILE --out=WARP first."
        )
    to_fsl = fsl_from_world(grid)
    positions = Grid(grid.shape, to_fsl @ grid.affine).positions().astype(np.float32)
    # Nothing in the file distinguishes displacements from absolute positions. Read as the other
    # kind, either has the fixed image's own extent in it, so the smaller variation is right.
    fields = [_in_world(kind, grid, moving) for kind in (vectors, vectors - positions)]
    return min(fields, key=lambda field: field.vectors_mm.std(axis=(0, 1, 2)).sum())


def _in_world(
    relative: Float[np.ndarray, "i j k 3"], grid: Grid, moving: Grid
) -> DisplacementField:
    to_fsl = fsl_from_world(grid)
    field = DisplacementField(grid, relative @ np.linalg.inv(to_fsl[:3, :3]).T.astype(np.float32))
    return np.linalg.inv(fsl_from_world(moving)) @ to_fsl @ field

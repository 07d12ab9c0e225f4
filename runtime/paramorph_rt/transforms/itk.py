"""ITK and ANTs: displacement fields in NIfTI, affines in .tfm, .txt or .mat, either in .h5.

ITK's world is LPS; all of these files map a point of the fixed image to the moving one.
"""

from __future__ import annotations

import mmap
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import TransformError
from ..geometry.compose import compose, itk_transform
from ..geometry.field import DisplacementField
from ..geometry.spaces import affine_from_itk, flip_vectors, from_sitk, itk_affine
from ..images.nifti import write_nifti
from ..images.volume import load_vectors
from ..system.files import check_regular, check_utf8

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float

    from . import Images, Transform

FIELD_SUFFIXES = (".nii", ".nii.gz", ".h5")
AFFINE_SUFFIXES = (".tfm", ".txt", ".mat", ".h5")
VECTOR_INTENT = 1007
# A kind of transform that is refused, and whose parameters can make ITK abort before.
_UNREAD = b"BSplineTransform_"
# Head of a variable: kind of numbers, rows, columns, whether complex, length of its name.
_VARIABLE = "5i"
_VARIABLE_BYTES = 20
# At most, of an HDF5 file besides its parameters.
_HDF5_BYTES = 100_000


def read(path: Path, images: Images) -> Transform:
    """Read a field or an affine; a composite file becomes one transform. Needs no image."""
    if path.name.endswith((".nii", ".nii.gz")):
        return read_displacement(path)
    return compose(_parts(read_itk(path), path))


def write_field(path: Path, field: DisplacementField, images: Images) -> None:
    """Write a field (.nii, .nii.gz, .h5). Needs no image."""
    if path.name.endswith(".h5"):
        _write_itk(path, itk_transform([field]))
    else:
        write_displacement(path, field)


def write_displacement(path: Path, field: DisplacementField) -> None:
    """Write a field as ITK reads it: float32 (X, Y, Z, 1, 3), vector intent, LPS mm."""
    vectors = flip_vectors(field.vectors_mm.astype(np.float32, copy=False))
    write_nifti(
        path,
        vectors[:, :, :, np.newaxis, :],
        field.grid,
        intent="vector",
        descrip="ITK displacement in LPS mm, from this grid into the image to be warped",
    )


def read_displacement(path: Path) -> DisplacementField:
    """Read a field that ITK, ANTs or `write_displacement` wrote as NIfTI.

    Raises:
        VolumeError: The file is damaged, or no NIfTI of three-component vectors.
        TransformError: Its header says that it is no ITK field.
    """
    vectors, grid, header = load_vectors(path)
    if header["dim"][0] != 5 or header["intent_code"] != VECTOR_INTENT:
        raise TransformError(
            f"{path.name}: expected an ITK displacement field of shape (X, Y, Z, 1, 3) with vector "
            f"intent {VECTOR_INTENT}, got shape {header.get_data_shape()} with intent "
            f"{header['intent_code']}; say with --from what it is."
        )
    return DisplacementField(grid, flip_vectors(vectors))


def write_affine(
    path: Path, affine: Float[np.ndarray, "4 4"], images: Images | None = None
) -> None:
    """Write an affine (.tfm, .txt, .mat, .h5), fixed world → moving world (RAS). Needs no image.

    Raises:
        OSError: The disk is full.
    """
    transform = itk_affine(affine)
    _write_itk(path, transform)
    # ITK's writers of text and MATLAB do not report a full disk.
    with suppress(RuntimeError):
        if sitk.ReadTransform(str(path)).GetParameters() == transform.GetParameters():
            return
    raise OSError("an incomplete file")


def write_composite(path: Path, field: DisplacementField, affine: Float[np.ndarray, "4 4"]) -> None:
    """Write one .h5 for antsApplyTransforms, 3D Slicer and ITK: a field, followed by an affine.

    Beyond the field's grid the affine goes on by itself.

    Args:
        path: .h5; ITK stores double precision, 24 bytes per voxel of the field.
        field: Complete, fixed → moving, the affine included.
        affine: Its affine part, fixed world → moving world (RAS).

    Raises:
        OSError: The disk is full.
    """
    by_network = np.linalg.inv(affine) @ field
    _write_itk(path, itk_transform([by_network, affine]))


def _write_itk(path: Path, transform: sitk.Transform) -> None:
    check_utf8(path, TransformError)
    if path.name.endswith(".h5"):
        count = transform.GetNumberOfParameters() + transform.GetNumberOfFixedParameters()
        _check_room(path, 8 * count + _HDF5_BYTES)
    try:
        sitk.WriteTransform(transform, str(path))
    except RuntimeError as err:
        raise OSError("no complete file from ITK") from err


def read_affine(path: Path) -> Float[np.ndarray, "4 4"]:
    """Read a linear ITK transform as fixed world → moving world (RAS).

    Raises:
        TransformError: The file is no linear ITK transform.
    """
    transform = read_itk(path)
    if not transform.IsLinear():
        raise TransformError(
            f"{path.name}: expected a linear transform, got {transform.GetName()}; pass an affine."
        )
    return affine_from_itk(transform)


def read_itk(path: Path) -> sitk.Transform:
    """Read any transform file of ITK.

    Raises:
        TransformError: ITK cannot, or it is not for three dimensions.
    """
    size = check_regular(path, "a transform", TransformError)
    name = check_utf8(path, TransformError)
    _check_content(path, size)
    try:
        transform = sitk.ReadTransform(name)
    except RuntimeError as err:
        raise TransformError(
            f"{path.name}: expected an ITK transform, got something unreadable; check the file, "
            "or say with --from what it is."
        ) from err
    if transform.GetDimension() != 3:
        raise TransformError(
            f"{path.name}: expected a transform of three dimensions, got "
            f"{transform.GetDimension()}; check that it is the right file."
        )
    return transform


def _check_content(path: Path, size: int) -> None:
    """Refuse what ITK believes until it aborts or has filled the memory.

    Raises:
        TransformError: A kind of transform that is not read anyway, or a MATLAB file that announces
            more than it holds.
    """
    if not size:
        return  # ITK says so, and nothing can be mapped
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        if content.find(_UNREAD) >= 0:
            raise _not_linear(path, "a B-spline")
        if path.name.endswith(".mat") and not _is_matlab(content):
            raise TransformError(
                f"{path.name}: expected an ITK transform, got a MATLAB file that announces more "
                "than it holds; write it again, or say with --from what it is."
            )


def _is_matlab(content: mmap.mmap) -> bool:
    """Whether every variable of a MATLAB file (level 4) ends within it.

    Source:
        https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf
    """
    start = 0
    while start < len(content):
        head = content[start : start + _VARIABLE_BYTES]
        if len(head) < _VARIABLE_BYTES:
            return False
        # Read in the other byte order, the kind is a large number.
        kind, rows, columns, is_complex, name = min(
            (struct.unpack(f"{order}{_VARIABLE}", head) for order in "<>"),
            key=lambda fields: abs(fields[0]),
        )
        if min(rows, columns, name) < 0 or is_complex:
            return False
        number = 4 if kind // 10 % 10 == 1 else 8
        start += _VARIABLE_BYTES + name + rows * columns * number
    return start == len(content)


def _not_linear(path: Path, got: str) -> TransformError:
    return TransformError(
        f"{path.name}: expected displacement fields and linear transforms, got {got}; turn it into "
        "a displacement field with its own software."
    )


def _parts(transform: sitk.Transform, path: Path) -> list[Transform]:
    """The transforms that a point of the fixed image passes, in that order."""
    if transform.GetTransformEnum() == sitk.sitkComposite:
        composite = sitk.CompositeTransform(transform)
        order = reversed(range(composite.GetNumberOfTransforms()))  # ITK applies the last first
        return [part for n in order for part in _parts(composite.GetNthTransform(n), path)]
    if transform.GetTransformEnum() == sitk.sitkDisplacementField:
        image = sitk.DisplacementFieldTransform(transform).GetDisplacementField()
        vectors, grid = from_sitk(image)
        return [DisplacementField(grid, vectors.astype(np.float32))]
    if not transform.IsLinear():
        raise _not_linear(path, transform.GetName())
    return [affine_from_itk(transform)]


def _check_room(path: Path, count: int) -> None:
    """Fill a file that HDF5 then overwrites: where the disk is full, HDF5 says so on 30 lines.

    It may also take the whole process down later, when it closes what it could not write.
    """
    with path.open("wb") as stream:
        while count > 0:
            count -= stream.write(bytes(min(count, 2**20)))

"""Images of two files, `.hdr` and `.img`: Analyze 7.5 and SPM's, and NIfTI's pairs.

A header of Analyze cannot say which way is left, so the caller states it; one of NIfTI can.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from ..errors import VolumeError
from ..system.files import MOST_TEXT_BYTES, check_regular, may_hold
from .gzip_files import GZIP_ERRORS, reading
from .nifti import MAX_VOXELS, check_fields, check_voxels, first_line

if TYPE_CHECKING:
    from jaxtyping import Float

SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
# What each axis of the voxels may point at; a code has one letter of each pair.
DIRECTIONS = ("RL", "AP", "SI")
_HEADER_BYTES = 348


def read_analyze(path: Path, orientation: str | None = None) -> nib.Nifti1Image:
    """Read an image of two files.

    Args:
        path: Header or voxels; either file may be gzipped.
        orientation: Where the axes of the voxels point, such as "LAS"; for Analyze only, whose
            images are put with their centre at the world's origin.

    Raises:
        VolumeError: A file is missing, damaged or truncated, not a 3-D image of real values, or
            Analyze and no orientation.
    """
    header, voxels = both_files(path)
    try:
        content = read_header(header)
        is_nifti = content[344:347] == b"ni1"
        kind = nib.Nifti1Pair if is_nifti else nib.Spm99AnalyzeImage
        fields = kind.header_class(content, check=False)
        if isinstance(fields, nib.nifti1.Nifti1PairHeader):
            check_fields(fields)
        offset, dtype = int(fields.get_data_offset()), fields.get_data_dtype()
        shape = fields.get_data_shape()
        if not 0 <= offset <= MOST_TEXT_BYTES:
            raise ValueError(f"voxels at byte {offset}")
    except GZIP_ERRORS as err:
        raise _damaged(path, err) from err
    except Exception as err:  # nibabel raises a dozen types for the ways a header can be wrong
        raise VolumeError(
            f"{header.name}: expected a header of Analyze or NIfTI, got an unreadable one "
            f"({first_line(err)}); check that the file is complete and of that type."
        ) from err
    check_voxels(path, fields)
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            f"{path.name}: expected a 3-D volume, got shape {shape}; split the series first."
        )
    proxy = ArrayProxy(io.BytesIO(_voxels(voxels, shape, dtype.itemsize, offset)), fields)
    data = np.asanyarray(proxy).reshape(shape[:3], order="A")
    if is_nifti:
        return nib.Nifti1Image(data, fields.get_best_affine(), fields, dtype=data.dtype)
    return nib.Nifti1Image(data, _affine(path, fields, orientation), dtype=data.dtype)


def _affine(path: Path, fields: Any, orientation: str | None) -> Float[np.ndarray, "4 4"]:
    if orientation is None:
        raise VolumeError(
            f"{path.name}: expected an image that says where left and right are, got Analyze, "
            "which cannot; pass --analyze-orientation (infer, cohort, bids; in trainings "
            "data.analyze_orientation) with where the voxels' axes point, such as LAS."
        )
    return oriented_affine(fields, orientation, path.name)


def _voxels(path: Path, shape: tuple[int, ...], itemsize: int, offset: int) -> bytes:
    """The file of the voxels, as long as the header promises.

    Raises:
        VolumeError: It is damaged or shorter.
    """
    count = int(np.prod(shape, dtype=object))
    promised = count * itemsize + offset
    there = check_regular(path, "the voxels", VolumeError)
    is_possible = count <= MAX_VOXELS and may_hold(
        there, promised, count, path.name.endswith(".gz")
    )
    try:
        content = _content(path, promised) if is_possible else b""
    except GZIP_ERRORS as err:
        raise _damaged(path, err) from err
    if len(content) < promised:
        raise VolumeError(
            f"{path.name}: expected {promised} bytes as its header says (shape {shape}), got "
            f"{len(content) or there}: the file is truncated; copy it again."
        )
    return content


def oriented_affine(image: Any, orientation: str, name: str) -> Float[np.ndarray, "4 4"]:
    """Voxel index → world mm of axes that point where `orientation` says, centred at the origin.

    Args:
        image: nibabel's image or header, which has shape and spacing.
        orientation: Such as "LAS".
        name: What messages call the image.

    Raises:
        VolumeError: The orientation is none, or voxels have no size.
    """
    check_orientation(orientation)
    header = getattr(image, "header", image)
    shape = header.get_data_shape()[:3]
    spacing = np.abs(np.array(header.get_zooms()[:3], dtype=np.float64))
    if not (np.isfinite(spacing).all() and spacing.all()):
        raise VolumeError(
            f"{name}: expected voxels of some size, got {spacing.tolist()} mm; repair the header."
        )
    affine = np.eye(4)
    for axis, letter in enumerate(orientation):
        world = next(n for n, pair in enumerate(DIRECTIONS) if letter in pair)
        affine[:, axis] = 0
        affine[world, axis] = spacing[axis] if letter in "RAS" else -spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def check_orientation(code: str) -> None:
    """Refuse what is no orientation.

    Raises:
        VolumeError: Not one letter of each of R/L, A/P and S/I.
    """
    if sorted(next((d for d in DIRECTIONS if c in d), "") for c in code) != sorted(DIRECTIONS):
        raise VolumeError(
            f"orientation: expected three letters, one of R and L, of A and P, and of S and I, got "
            f"{code}; name where each axis of the voxels points, such as LAS."
        )


def both_files(path: Path) -> tuple[Path, Path]:
    """Header and voxels, of the path of either.

    Raises:
        VolumeError: One is missing.
    """
    return _file(path, ".hdr"), _file(path, ".img")


def _file(path: Path, ending: str) -> Path:
    """The header or the voxels that belong to either."""
    name = path.name.removesuffix(".gz").removesuffix(".hdr").removesuffix(".img")
    candidates = (path.with_name(f"{name}{ending}"), path.with_name(f"{name}{ending}.gz"))
    for candidate in candidates:
        if os.path.lexists(candidate):
            check_regular(candidate, "one of an image's two files", VolumeError)
            return candidate
    raise VolumeError(
        f"{path}: expected an image of two files, .hdr and .img, found no {candidates[0].name}; "
        "check the path."
    )


def read_header(path: Path) -> bytes:
    """Its 348 bytes.

    Raises:
        VolumeError: No regular file.
    """
    check_regular(path, "the header of an image", VolumeError)
    return _content(path, _HEADER_BYTES)[:_HEADER_BYTES]


def _content(path: Path, promised: int) -> bytes:
    # One byte more than promised, so that gzip meets the end and verifies its checksum.
    with reading(path, path.name.endswith(".gz")) as stream:
        return bytes(stream.read(promised + 1))


def _damaged(path: Path, err: Exception) -> VolumeError:
    return VolumeError(
        f"{path.name}: expected a complete file, got damaged or truncated data "
        f"({first_line(err)}); copy it again."
    )

"""Images of two files, `.hdr` and `.img`: Analyze 7.5 and SPM's, and NIfTI's pairs.

A header of Analyze cannot say which way is left, so it is asked for; one of NIfTI can.
"""

from __future__ import annotations

import io
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.fileholders import FileHolder

from .errors import VolumeError
from .gzip_files import GZIP_ERRORS, reading
from .nifti import MAX_VOXELS, check_voxels, first_line

SUFFIXES = (".hdr", ".img", ".hdr.gz", ".img.gz")
# What each axis of the voxels may point at; a code has one letter of each pair.
DIRECTIONS = ("RL", "AP", "SI")


def read_analyze(path: Path, orientation: str | None = None) -> nib.Nifti1Image:
    """Read an image of two files.

    Args:
        path: Header or voxels; either file may be gzipped.
        orientation: Where the axes of the voxels point, such as "LAS"; for Analyze only, whose
            images are put with their centre at the world's origin.

    Raises:
        VolumeError: A file is missing, damaged or truncated, not a 3-D image of real numbers, or
            Analyze and no orientation.
    """
    header, voxels = both_files(path)
    try:
        parts = {"header": _content(header), "image": _content(voxels)}
        is_nifti = parts["header"][344:347] == b"ni1"
        kind = nib.Nifti1Pair if is_nifti else nib.Spm99AnalyzeImage
        # SPM's third file, a matrix for MATLAB, is not read.
        contents = parts if is_nifti else {**parts, "mat": b""}
        image = kind.from_file_map(
            {role: FileHolder(fileobj=io.BytesIO(part)) for role, part in contents.items()}
        )
    except GZIP_ERRORS as err:
        raise _damaged(path, err) from err
    except Exception as err:  # nibabel raises a dozen types for the ways a header can be wrong
        raise VolumeError(
            f"{header.name}: expected a header of Analyze or NIfTI, got an unreadable one "
            f"({first_line(err)}); check that the file is complete and of that type."
        ) from err
    check_voxels(path, image)
    shape = image.shape
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            f"{path.name}: expected a 3-D volume, got shape {shape}; split the series first."
        )
    promised = int(np.prod(shape, dtype=object)) * image.get_data_dtype().itemsize
    promised += int(image.dataobj.offset)
    if int(np.prod(shape, dtype=object)) > MAX_VOXELS or len(parts["image"]) < promised:
        raise VolumeError(
            f"{voxels.name}: expected {promised} bytes as its header says (shape {shape}), got "
            f"{len(parts['image'])}: the file is truncated; copy it again."
        )
    affine = image.affine if is_nifti else _affine(path, image, orientation)
    data = np.asanyarray(image.dataobj).reshape(shape[:3], order="A")
    return nib.Nifti1Image(data, affine, image.header if is_nifti else None, dtype=data.dtype)


def _affine(path: Path, image: nib.Spm99AnalyzeImage, orientation: str | None) -> np.ndarray:
    """Voxel index → world mm of axes that point where `orientation` says."""
    if orientation is None:
        raise VolumeError(
            f"{path.name}: expected an image that says where left and right are, got Analyze, "
            "which cannot; pass --analyze-orientation (infer, cohort, bids; in trainings "
            "data.analyze_orientation) with where the voxels' axes point, such as LAS."
        )
    check_orientation(orientation)
    spacing = np.abs(np.array(image.header.get_zooms()[:3], dtype=np.float64))
    affine = np.eye(4)
    for axis, letter in enumerate(orientation):
        world = next(n for n, pair in enumerate(DIRECTIONS) if letter in pair)
        affine[:, axis] = 0
        affine[world, axis] = spacing[axis] if letter in "RAS" else -spacing[axis]
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(image.shape[:3]) - 1) / 2)
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
        if candidate.is_file():
            return candidate
    raise VolumeError(
        f"{path}: expected an image of two files, .hdr and .img, found no {candidates[0].name}; "
        "check the path."
    )


def _content(path: Path) -> bytes:
    with reading(path, path.name.endswith(".gz")) as stream:
        return bytes(stream.read())


def _damaged(path: Path, err: Exception) -> VolumeError:
    return VolumeError(
        f"{path.name}: expected a complete file, got damaged or truncated data "
        f"({first_line(err)}); copy it again."
    )

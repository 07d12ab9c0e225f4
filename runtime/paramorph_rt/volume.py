"""The only door for image files: read, validate, write.

nibabel reads, because SimpleITK takes a truncated file for one that ends in zeros.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from .errors import VolumeError
from .spaces import Grid

if TYPE_CHECKING:
    from jaxtyping import Float, Integer, Shaped

# 1024³ voxels are 4 GiB as float32; a larger header is a mistake or an attack.
MAX_VOXELS = 2**30
# Fewer voxels on an axis leave nothing to smooth, differentiate or deform.
MIN_SIDE = 4
# Deflate cannot compress better than 1032 : 1, so a .gz file bounds what it may promise.
MAX_GZIP_RATIO = 1032
# Largest cosine between two axes. Headers round at 1e-6; at 1e-3 a 200 mm field of view is
# distorted by 0.2 mm, which is less than a voxel and more than any rounding.
MAX_SHEAR = 1e-3


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they are.

    Attributes:
        data: Intensities (float32) or labels (an integer type), one per voxel of `grid`.
        grid: Where the voxels lie in the world.
        name: What messages call it, usually the file's name.
    """

    data: Shaped[np.ndarray, "i j k"]
    grid: Grid
    name: str = "volume"

    def __post_init__(self) -> None:
        if self.data.shape != self.grid.shape:
            raise VolumeError(
                f"{self.name}: expected data of its grid's shape {self.grid.shape}, "
                f"got {self.data.shape}; pass the grid that belongs to the data."
            )


def load_volume(path: str | Path) -> Volume:
    """Read an intensity image as float32.

    Raises:
        VolumeError: The file is missing, damaged, not a 3-D NIfTI, or `check_image` refuses it.
    """
    path = Path(path)
    image = _read(path)
    data = image.get_fdata(dtype=np.float32, caching="unchanged")
    volume = Volume(_squeezed(data), _grid(path, image), path.name)
    check_image(volume)
    return volume


def load_labels(path: str | Path) -> Volume:
    """Read a label map in the integer type of its file (int32 if the file holds floats).

    Raises:
        VolumeError: As `load_volume`, or the values are not whole numbers.
    """
    path = Path(path)
    image = _read(path)
    data = _squeezed(np.asanyarray(image.dataobj))
    if data.dtype.kind == "f":
        data = _whole_numbers(data, path.name)
    # ITK and fast NumPy want the machine's own byte order.
    labels = Volume(data.astype(data.dtype.newbyteorder("=")), _grid(path, image), path.name)
    check_labels(labels)
    return labels


def save_volume(path: str | Path, volume: Volume) -> None:
    """Write a volume as NIfTI in its own dtype, with sform and qform set."""
    image = nib.Nifti1Image(volume.data, volume.grid.affine)
    _set_scanner_space(image, volume.grid)
    nib.save(image, path)  # nibabel compresses .gz at level 1: 3 times faster, a tenth larger


def save_labels(path: str | Path, labels: Volume) -> None:
    """Write a label map as NIfTI in its own integer type."""
    if labels.data.dtype.kind not in "iu":
        raise VolumeError(
            f"{labels.name}: expected labels of an integer type, got {labels.data.dtype}; "
            "convert them first."
        )
    image = nib.Nifti1Image(labels.data, labels.grid.affine, dtype=labels.data.dtype)
    image.header.set_intent("label")
    _set_scanner_space(image, labels.grid)
    nib.save(image, path)


def check_image(volume: Volume) -> None:
    """Refuse an image that cannot be registered.

    Raises:
        VolumeError: Too few voxels, a singular or sheared affine, values that are not finite, or
            the same value everywhere.
    """
    _check_grid(volume)
    low, high = float(volume.data.min()), float(volume.data.max())  # NaN and Inf show in these
    if not np.isfinite([low, high]).all():
        bad = int(volume.data.size - np.isfinite(volume.data).sum())
        raise VolumeError(
            f"{volume.name}: expected finite intensities, got {bad} voxels of NaN or Inf; "
            "replace them first."
        )
    if low == high:
        raise VolumeError(
            f"{volume.name}: expected an image with contrast, got the constant {low:g}; "
            "check that it is the right file."
        )


def check_labels(labels: Volume) -> None:
    """Refuse a label map without any label, or with a grid that `check_image` would refuse."""
    _check_grid(labels)
    if not labels.data.any():
        raise VolumeError(
            f"{labels.name}: expected at least one label besides 0, got none; "
            "check that it is the right file."
        )


def check_same_grid(volume: Volume, labels: Volume) -> None:
    """Refuse labels that do not lie on the voxels of their image.

    Raises:
        VolumeError: Shape or affine differ.
    """
    if volume.grid.matches(labels.grid):
        return
    differ = "another affine" if volume.grid.shape == labels.grid.shape else "another shape"
    raise VolumeError(
        f"{labels.name}: expected the grid of {volume.name} {volume.grid.shape}, got {differ} "
        f"{labels.grid.shape}; resample the labels onto their image first."
    )


def _read(path: Path) -> nib.Nifti1Image:
    """Read header and voxels after checking that the one can be true of the other."""
    if not path.is_file():
        raise VolumeError(f"{path}: expected a NIfTI file, found none; check the path.")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise VolumeError(
            f"{path.name}: expected a NIfTI file (.nii or .nii.gz), got another file type; "
            "convert it first."
        )
    compressed = path.name.endswith(".gz")
    try:
        image = nib.load(path)
        # `nib.load` believes a NIfTI-named file to be other things if its header says so.
        if not isinstance(image, nib.Nifti1Image):
            raise TypeError(type(image).__name__)
    except Exception as err:  # nibabel raises a dozen types for the ways a header can be wrong
        raise VolumeError(
            f"{path.name}: expected a NIfTI file, got an unreadable header "
            f"({_first_line(err)}); check that the file is complete and of that type."
        ) from err
    _check_header(path, image, compressed)
    promised = int(image.dataobj.offset) + _voxel_bytes(image)
    try:
        # One byte more than promised, so that gzip meets the end and verifies its checksum.
        with (gzip.open if compressed else open)(path, "rb") as stream:
            content = stream.read(promised + 1)
    except (OSError, EOFError, zlib.error) as err:
        raise VolumeError(
            f"{path.name}: expected a complete file, got damaged or truncated data "
            f"({_first_line(err)}); copy it again."
        ) from err
    if len(content) < promised:
        raise VolumeError(
            f"{path.name}: expected {promised} bytes as its header says, got {len(content)}: the "
            "file is truncated; copy it again."
        )
    return type(image).from_bytes(content)


def _check_header(path: Path, image: nib.Nifti1Image, compressed: bool) -> None:
    shape, dtype = image.shape, image.get_data_dtype()
    if dtype.kind not in "iuf":
        kind = "colour" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
        raise VolumeError(
            f"{path.name}: expected one real number per voxel, got {kind} voxels; "
            "convert it to a greyscale image first."
        )
    if len(shape) < 3 or min(shape) < 1 or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            f"{path.name}: expected a 3-D volume, got shape {shape}; "
            "split a series, or stack slices, first."
        )
    voxels = int(np.prod([int(n) for n in shape], dtype=object))
    capacity = path.stat().st_size * (MAX_GZIP_RATIO if compressed else 1)
    if voxels > MAX_VOXELS or voxels * dtype.itemsize > capacity:
        raise VolumeError(
            f"{path.name}: expected voxels that fit the file, got a header of shape {shape} in "
            f"{path.stat().st_size} bytes: it is truncated or absurd; check the file."
        )


def _voxel_bytes(image: nib.Nifti1Image) -> int:
    return int(np.prod(image.shape, dtype=np.int64)) * image.get_data_dtype().itemsize


def _squeezed(data: Shaped[np.ndarray, "i j k ..."]) -> Shaped[np.ndarray, "i j k"]:
    return data.reshape(data.shape[:3], order="A")


def _grid(path: Path, image: nib.Nifti1Image) -> Grid:
    if not np.isfinite(image.affine).all():
        raise VolumeError(
            f"{path.name}: expected a finite affine, got {image.affine.tolist()}; "
            "repair the header."
        )
    return Grid(image.shape[:3], image.affine)


def _check_grid(volume: Volume) -> None:
    if min(volume.grid.shape) < MIN_SIDE:
        raise VolumeError(
            f"{volume.name}: expected at least {MIN_SIDE} voxels on every axis, "
            f"got shape {volume.grid.shape}; pass a volume, not a slice."
        )
    spacing = volume.grid.spacing
    if spacing.min() < 1e-6 or abs(np.linalg.det(volume.grid.directions)) < 1e-6:
        raise VolumeError(
            f"{volume.name}: expected an invertible affine, got a singular one with spacing "
            f"{spacing.round(6).tolist()}; repair the header."
        )
    cosines = np.abs(volume.grid.directions.T @ volume.grid.directions - np.eye(3))
    if cosines.max() > MAX_SHEAR:
        raise VolumeError(
            f"{volume.name}: expected perpendicular voxel axes, got a sheared affine (cosine "
            f"{cosines.max():.4f}); resample it to a plain grid first."
        )


def _whole_numbers(data: Float[np.ndarray, "i j k"], name: str) -> Integer[np.ndarray, "i j k"]:
    limit = np.iinfo(np.int32).max
    if not (np.isfinite(data).all() and np.abs(data).max() <= limit):
        raise VolumeError(
            f"{name}: expected labels as 32-bit whole numbers, got values that are not finite or "
            "too large; check that it is a label map."
        )
    rounded = np.rint(data)
    if (rounded != data).any():
        value = data[rounded != data].flat[0]
        raise VolumeError(
            f"{name}: expected whole numbers as labels, got {value:g}; "
            "resample label maps with nearest neighbour."
        )
    return rounded.astype(np.int32)


def _set_scanner_space(image: nib.Nifti1Image, grid: Grid) -> None:
    # Both codes, because readers differ in which of the two they prefer.
    image.set_sform(grid.affine, code="scanner")
    image.set_qform(grid.affine, code="scanner")
    image.header.set_xyzt_units("mm")


def _first_line(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0].rstrip(".")

"""The door for image files of all formats: read, check, write."""

from __future__ import annotations

import logging
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nibabel.spatialimages import HeaderDataError

from ..errors import VolumeError
from ..geometry.spaces import Grid
from .analyze import SUFFIXES as ANALYZE_SUFFIXES
from .analyze import both_files, oriented_affine, read_analyze
from .checks import check_grid, check_image, check_label_map, check_labels, check_mask
from .data import Series as Series
from .data import Volume as Volume
from .itk_files import SUFFIXES as ITK_SUFFIXES
from .itk_files import ItkFile, open_itk
from .nifti import SUFFIXES as NIFTI_SUFFIXES
from .nifti import (
    UNITS_MM,
    WORLD_CODES,
    read_nifti,
    read_series_nifti,
    read_vector_nifti,
    write_nifti,
    writing_series,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    import nibabel as nib
    from jaxtyping import Float, Integer, Shaped

log = logging.getLogger(__name__)


def load_volume(path: str | Path, orientation: str | None = None) -> Volume:
    """Read an intensity image as float32.

    Args:
        path: NIfTI, NRRD, MetaImage, Analyze, or the folder of a DICOM series.
        orientation: Where the voxels' axes point, such as "LAS"; of Analyze, whose header cannot
            say it.

    Raises:
        VolumeError: The file is missing, damaged, not a 3-D image, or `check_image` refuses it.
    """
    path = Path(path)
    image = _open(path, orientation)
    grid = grid_of(path, image, orientation)
    with np.errstate(over="ignore", invalid="ignore"):  # they become Inf and NaN, and are refused
        if isinstance(image, ItkFile):
            data = image.voxels().astype(np.float32)
        else:
            data = _squeezed(image.get_fdata(dtype=np.float32, caching="unchanged"))
    volume = Volume(data, grid, path.name)
    check_image(volume)
    return volume


def load_series(path: str | Path) -> Series:
    """Read a series of volumes from a 4-D NIfTI file.

    Raises:
        VolumeError: The file is missing, damaged, no such series, or its grid cannot be used.
    """
    path = Path(path)
    image = read_series_nifti(path)
    grid = grid_of(path, image)
    check_grid(grid, path.name)
    seconds = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}.get(image.header.get_xyzt_units()[1], 1.0)
    return Series(image.dataobj, grid, float(image.header.get_zooms()[3]) * seconds, path.name)


def load_labels(
    path: str | Path, may_be_empty: bool = False, orientation: str | None = None
) -> Volume:
    """Read a label map in the integer type of its file (int32 if the file holds floats).

    Args:
        path: Of the label map.
        may_be_empty: Take a map without any label, too.
        orientation: As for `load_volume`.

    Raises:
        VolumeError: As `load_volume`, or the values are not whole numbers.
    """
    path = Path(path)
    image = _open(path, orientation)
    data = _squeezed(image.voxels() if isinstance(image, ItkFile) else np.asanyarray(image.dataobj))
    if data.dtype.kind == "f":
        data = _whole_numbers(data, path.name)
    # ITK and fast NumPy want the machine's own byte order.
    grid = grid_of(path, image, orientation)
    labels = Volume(data.astype(data.dtype.newbyteorder("=")), grid, path.name)
    if may_be_empty:
        check_label_map(labels)
    else:
        check_labels(labels)
    return labels


def load_mask(path: str | Path, image: Volume, orientation: str | None = None) -> Volume:
    """Read which voxels of an image count: those that are not 0; `orientation` as in `load_volume`.

    Raises:
        VolumeError: As `load_labels`, or the mask lies on another grid, or no voxel counts.
    """
    mask = load_labels(path, True, orientation)
    check_mask(mask, image)
    return mask


def load_grid(path: str | Path, orientation: str | None = None) -> Grid:
    """Read where the voxels of an image or label map are, whatever is in them.

    `orientation` as in `load_volume`.

    Raises:
        VolumeError: As `load_volume`, except for the voxels' values.
    """
    path = Path(path)
    grid = grid_of(path, _open(path, orientation), orientation)
    check_grid(grid, path.name)
    return grid


def load_vectors(
    path: str | Path,
) -> tuple[Float[np.ndarray, "i j k 3"], Grid, nib.Nifti1Header]:
    """Read a file of one vector per voxel as float32, unconverted: the header says what they are.

    Raises:
        VolumeError: The file is missing, damaged, not such a NIfTI, or its grid or values cannot
            be used.
    """
    path = Path(path)
    image = read_vector_nifti(path)
    grid = grid_of(path, image)
    check_grid(grid, path.name)
    vectors = image.get_fdata(dtype=np.float32, caching="unchanged")
    if not np.isfinite(vectors).all():
        raise VolumeError(
            f"{path.name}: expected finite vectors, got NaN or Inf; replace them first."
        )
    return vectors.reshape((*grid.shape, 3), order="A"), grid, image.header


def save_volume(path: str | Path, volume: Volume) -> None:
    """Write a volume as NIfTI in its own dtype, with sform and qform set."""
    write_nifti(path, volume.data, volume.grid)


def save_series(path: str | Path, volumes: Iterable[Volume], grid: Grid, like: Series) -> None:
    """Write volumes as a 4-D NIfTI of float32, one by one as they come.

    Args:
        path: .nii or .nii.gz.
        volumes: As many as `like` has.
        grid: Of all of them.
        like: The series that they were made from.
    """
    with writing_series(path, grid, len(like), like.step, np.dtype(np.float32)) as append:
        for volume in volumes:
            append(volume.data)


def save_labels(path: str | Path, labels: Volume) -> None:
    """Write a label map as NIfTI in its own integer type."""
    if labels.data.dtype.kind not in "iu":
        raise VolumeError(
            f"{labels.name}: expected labels of an integer type, got {labels.data.dtype}; "
            "convert them first."
        )
    write_nifti(path, labels.data, labels.grid, intent="label")


def nifti_name(name: str) -> str:
    """The name of a NIfTI file made from an image of this name."""
    if name.endswith(NIFTI_SUFFIXES):
        return name
    for suffix in (*ITK_SUFFIXES, *ANALYZE_SUFFIXES):
        name = name.removesuffix(suffix)
    return f"{name}.nii.gz"


def grid_of(path: Path, image: nib.Nifti1Image | ItkFile, orientation: str | None = None) -> Grid:
    """The grid of an image that was read, in mm whatever the header's unit.

    Args:
        path: Of the image.
        image: With its header.
        orientation: As for `load_volume`; also of NIfTI without orientation codes.

    Raises:
        VolumeError: The affine is not finite, or means nothing without an orientation.
    """
    if isinstance(image, ItkFile):
        return image.grid
    header = image.header
    code = int(header["sform_code"]) or int(header["qform_code"])
    affine = np.array(image.affine)
    if is_analyze(path) and not code:
        code = 1  # `read_analyze` requires it
    elif not code:
        affine = _said_affine(path, image, orientation)
    unit_mm = UNITS_MM[int(header["xyzt_units"]) & 7]
    affine[:3] *= unit_mm
    if not np.isfinite(affine).all():
        raise VolumeError(
            f"{path.name}: expected a finite affine, got {affine.tolist()}; repair the header."
        )
    return Grid(
        image.shape[:3],
        affine,
        code if code in WORLD_CODES else 1,
        unit_mm * _forms_apart(header),
    )


def _forms_apart(header: nib.Nifti1Header) -> float:
    """How far apart sform and qform place a voxel, at most, where readers differ in which is taken.

    The sform is, by nibabel and here; by ITK only if its code is 1 or the qform has none.
    """
    if int(header["sform_code"]) in (0, 1) or not int(header["qform_code"]):
        return 0.0
    try:
        between = header.get_sform() - header.get_qform()
    except HeaderDataError:  # a qform that nobody can take
        return 0.0
    last = np.array(header.get_data_shape()[:3]) - 1
    corners = np.array(list(product(*((0, n) for n in last))))
    distances = np.linalg.norm(corners @ between[:3, :3].T + between[:3, 3], axis=1)
    return float(distances.max()) if np.isfinite(distances).all() else 0.0


def _said_affine(
    path: Path, image: nib.Nifti1Image, orientation: str | None
) -> Float[np.ndarray, "4 4"]:
    """Of a NIfTI file whose header does not say where its axes point; readers guess differently."""
    if orientation is None:
        raise VolumeError(
            f"{path.name}: expected a header that says where left and right are, got NIfTI without "
            "orientation codes (sform_code and qform_code are 0); pass --analyze-orientation "
            "(infer, cohort, bids) with where the voxels' axes point, such as LAS, or set the "
            "codes."
        )
    log.warning(
        "%s: no orientation codes in it; taken for %s, as requested", path.name, orientation
    )
    return oriented_affine(image, orientation, path.name)


def is_analyze(path: Path) -> bool:
    """Whether an image is called a header with voxels beside it."""
    return path.name.endswith(ANALYZE_SUFFIXES)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files of an image: one, or those of Analyze.

    Raises:
        VolumeError: Analyze, and one of its two is missing.
    """
    return both_files(path) if is_analyze(path) else (path,)


def _open(path: Path, orientation: str | None) -> nib.Nifti1Image | ItkFile:
    if is_analyze(path):
        return read_analyze(path, orientation)
    if path.name.endswith(ITK_SUFFIXES) or _is_folder(path):
        return open_itk(path)
    return read_nifti(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # opening it raises what is wrong
        return False


def _squeezed(data: Shaped[np.ndarray, "i j k ..."]) -> Shaped[np.ndarray, "i j k"]:
    return data.reshape(data.shape[:3], order="A")


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

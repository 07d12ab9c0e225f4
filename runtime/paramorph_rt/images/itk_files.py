"""Images that ITK reads: NRRD, MetaImage, and the slices of a DICOM series in a folder.

ITK refuses truncated files of these kinds (it does not for NIfTI, see `nifti`).
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import VolumeError
from ..geometry.spaces import Grid, flip_vectors, from_sitk, grid_of_sitk
from ..system.files import check_regular, check_utf8
from .itk_headers import check_header
from .nifti import MAX_VOXELS

if TYPE_CHECKING:
    from jaxtyping import Shaped

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
# DICOM tags: Image Position (Patient), Series Description.
POSITION, DESCRIPTION = "0020|0032", "0008|103e"
# Slices may be this far from equal steps: headers round, and a tenth of a millimetre moves nothing.
MAX_UNEVEN_MM = 0.1

_warnings = threading.Lock()  # ITK has one switch for them
_nrrd = threading.Lock()  # its library reads text wrongly in two threads at once


@dataclass(frozen=True)
class ItkFile:
    """An image whose header was read and trusted; its voxels are read on demand.

    Attributes:
        path: File, or folder of a DICOM series.
        grid: Where the voxels are.
    """

    path: Path
    grid: Grid

    def voxels(self) -> Shaped[np.ndarray, "i j k"]:
        """Read them in the type of the file.

        Raises:
            VolumeError: The file is damaged or truncated.
        """
        files = _only_series(self.path) if self.path.is_dir() else str(self.path)
        is_nrrd = self.path.name.endswith((".nrrd", ".nhdr"))
        try:
            with _nrrd if is_nrrd else nullcontext():
                return from_sitk(sitk.ReadImage(files))[0]
        except RuntimeError as err:
            raise VolumeError(
                f"{self.path.name}: expected a complete image, got damaged or truncated data "
                f"({_reason(err)}); copy it again."
            ) from err


def open_itk(path: Path) -> ItkFile:
    """Read the header of a file in one of `SUFFIXES`, or of the only DICOM series in a folder.

    Raises:
        VolumeError: No such file, unreadable, not a 3-D image of real values, or a series that is
            not the only one or not of evenly stacked slices.
    """
    check_utf8(path, VolumeError)
    if path.is_dir():
        return ItkFile(path, _stacked_grid(path, _only_series(path)))
    check_header(path)
    header = _header(path)
    size = header.GetSize()
    if len(size) != 3:
        raise VolumeError(
            f"{path.name}: expected a 3-D volume, got shape {size}; split a series, or stack "
            "slices, first."
        )
    return ItkFile(path, grid_of_sitk(header))


def _header(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as err:
        raise VolumeError(
            f"{path.name}: expected an image that ITK reads, got an unreadable header "
            f"({_reason(err)}); check that the file is complete and of that type."
        ) from err
    if reader.GetNumberOfComponents() != 1 or reader.GetPixelID() in _COMPLEX:
        kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        raise VolumeError(
            f"{path.name}: expected one real number per voxel, got {kind} voxels; "
            "convert it to a greyscale image first."
        )
    voxels = int(np.prod([int(n) for n in reader.GetSize()], dtype=object))
    if not 0 < voxels <= MAX_VOXELS:
        raise VolumeError(
            f"{path.name}: expected 1 to {MAX_VOXELS} voxels, got a header of shape "
            f"{reader.GetSize()}; check the file."
        )
    return reader


_COMPLEX = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)


def _only_series(folder: Path) -> tuple[str, ...]:
    """The slices of the folder's DICOM series, in order."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as err:
        raise VolumeError(
            f"{folder}: expected a folder with a DICOM series, got {err.strerror}; check its "
            "permissions."
        ) from err
    for entry in entries:
        check_utf8(entry, VolumeError)
        if not entry.is_dir():
            check_regular(entry, "a slice", VolumeError)
    with _warnings:
        before = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)  # our own error says it
        names = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
    series = {
        name: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name) for name in names
    }
    if not series:
        raise VolumeError(
            f"{folder}: expected a folder with a DICOM series, got none in it; pass the folder "
            "that holds its slices, or an image file."
        )
    if len(series) > 1:
        listed = ", ".join(f"{_description(files[0])} ({len(files)})" for files in series.values())
        raise VolumeError(
            f"{folder}: expected one DICOM series in the folder, got {len(series)}: {listed} "
            "slices; move the one you mean into a folder of its own."
        )
    return next(iter(series.values()))


def _description(file: str) -> str:
    header = _header(Path(file))
    if header.HasMetaDataKey(DESCRIPTION):
        return f'"{header.GetMetaData(DESCRIPTION).strip()}"'
    return f'"{Path(file).name}" and on'


def _stacked_grid(folder: Path, files: tuple[str, ...]) -> Grid:
    """Where the voxels are, from the slices' own positions."""
    headers = [_header(Path(file)) for file in files]
    first = headers[0]
    columns, rows = first.GetSize()[:2]
    slices = len(headers) if len(headers) > 1 else (*first.GetSize(), 1)[2]
    if slices < 2 or len(headers) == 1:
        raise VolumeError(
            f"{folder}: expected a DICOM series of one slice per file, got {len(headers)} file; "
            "convert it to NIfTI first, for example with dcm2niix."
        )
    if any(header.GetSize()[:2] != (columns, rows) for header in headers):
        raise VolumeError(
            f"{folder}: expected slices of one size, got several in the series; move those that "
            "do not belong to it (such as a localizer) away."
        )
    positions = np.array([_position(header, folder) for header in headers])
    if not np.isfinite(positions).all():
        raise VolumeError(
            f"{folder}: expected slices at finite positions, got NaN or Inf; convert it to NIfTI "
            "first, for example with dcm2niix."
        )
    steps = np.diff(positions, axis=0)
    step = steps.mean(axis=0)
    spacing = float(np.linalg.norm(step))
    uneven = float(np.linalg.norm(steps - step, axis=1).max())
    if spacing < 1e-3 or uneven > MAX_UNEVEN_MM:
        raise VolumeError(
            f"{folder}: expected slices at even steps, got steps of {spacing:.2f} mm that differ "
            f"by {uneven:.2f} mm: slices are missing, or several images share the series; convert "
            "it to NIfTI first, for example with dcm2niix."
        )
    direction = np.array(first.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :2] = direction[:, :2] * np.array(first.GetSpacing()[:2])
    affine[:3, 2] = step
    affine[:3] = flip_vectors(affine[:3].T).T
    affine[:3, 3] = flip_vectors(positions[0])
    return Grid((columns, rows, len(headers)), affine)


def _position(header: sitk.ImageFileReader, folder: Path) -> list[float]:
    if not header.HasMetaDataKey(POSITION):
        raise VolumeError(
            f"{folder}: expected slices with positions (DICOM tag 0020,0032), got one without; "
            "convert it to NIfTI first, for example with dcm2niix."
        )
    text = header.GetMetaData(POSITION)
    try:
        x, y, z = map(float, text.split("\\"))
    except ValueError as err:
        raise VolumeError(
            f"{folder}: expected slices with positions of three numbers, got {text.strip()!r}; "
            "convert it to NIfTI first, for example with dcm2niix."
        ) from err
    return [x, y, z]


def _reason(err: Exception) -> str:
    """The last line of ITK's message, which says what is wrong."""
    return str(err).strip().splitlines()[-1].strip().rstrip(".")

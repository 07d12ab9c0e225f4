"""NIfTI files: reading with suspicion, writing so that every reader agrees.

nibabel reads, because SimpleITK takes a truncated file for one that ends in zeros.
"""

from __future__ import annotations

import io
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from ..errors import VolumeError
from ..system.files import check_regular, may_hold
from .gzip_files import GZIP_ERRORS, is_no_gzip, reading, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..geometry.spaces import Grid

SUFFIXES = (".nii", ".nii.gz")
# 1024³ voxels are 4 GiB as float32; a larger header is a mistake or an attack.
MAX_VOXELS = 2**30
# What NIfTI names: scanner, aligned, Talairach, MNI, another template.
WORLD_CODES = (1, 2, 3, 4, 5)
# Of the world in mm, by the code in the header; 0 does not say, and means mm everywhere.
UNITS_MM = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}

_KINDS: dict[bytes, type[nib.Nifti1Image]] = {b"n+1": nib.Nifti1Image, b"n+2": nib.Nifti2Image}
_MAGIC = {348: slice(344, 347), 540: slice(4, 7)}  # where it is in headers of this size
_LONGEST_OFFSET = 2**26  # more than that of extensions is no image


def read_nifti(path: Path) -> nib.Nifti1Image:
    """Read a greyscale or label NIfTI whose header and bytes agree.

    Raises:
        VolumeError: The file is missing, no NIfTI, damaged or truncated, or its header promises
            other than a 3-D volume of real values that could be in the file.
    """
    return _read(
        path,
        lambda shape: len(shape) >= 3 and all(n == 1 for n in shape[3:]),
        "a 3-D volume",
        "split the series (or pass --apply-to-all for a moving one), or stack slices, first",
    )


def read_series_nifti(path: Path) -> nib.Nifti1Image:
    """Read a series of volumes: shape (X, Y, Z, T) with T of 2 or more.

    Raises:
        VolumeError: As `read_nifti`, but for the shape.
    """
    return _read(
        path,
        lambda shape: len(shape) == 4 and shape[3] > 1,
        "a series of shape (X, Y, Z, T)",
        "leave out --apply-to-all for a single volume",
    )


def read_vector_nifti(path: Path) -> nib.Nifti1Image:
    """Read a NIfTI of one vector of three per voxel: shape (X, Y, Z, 3) or (X, Y, Z, 1, 3).

    Raises:
        VolumeError: As `read_nifti`, but for the shape.
    """
    return _read(
        path,
        lambda shape: shape[3:] in ((3,), (1, 3)),
        "a displacement field of shape (X, Y, Z, 3) or (X, Y, Z, 1, 3)",
        "check that it is the right file",
    )


def _read(
    path: Path, fits: Callable[[tuple[int, ...]], bool], expected: str, advice: str
) -> nib.Nifti1Image:
    """An image of real values whose shape fits, complete."""
    image = open_nifti(path)
    check_voxels(path, image)
    if not fits(image.shape) or min(image.shape) < 1:
        raise VolumeError(f"{path.name}: expected {expected}, got shape {image.shape}; {advice}.")
    return _complete(path, image)


def open_nifti(path: Path) -> nib.Nifti1Image:
    """Read the header alone; the image has no voxels.

    Raises:
        VolumeError: The file is missing, no NIfTI, or its header contradicts itself.
    """
    if not path.name.endswith(SUFFIXES) and path.is_file():
        raise VolumeError(
            f"{path.name}: expected a NIfTI file (.nii or .nii.gz), got another file type; convert "
            "it first (images may also be .nrrd, .nhdr, .mha, .mhd, .hdr with .img, or a folder of "
            "DICOM slices)."
        )
    check_regular(path, "a NIfTI file", VolumeError)
    try:
        with reading(path, path.name.endswith(".gz")) as stream:
            kind, header = header_of(stream.read(max(_MAGIC)))
        affine = header.get_best_affine()
        is_finite = bool(np.isfinite(affine).all())
        image = kind(ArrayProxy(io.BytesIO(), header), affine, header) if is_finite else None
    except Exception as err:  # nibabel raises a dozen types for the ways a header can be wrong
        if isinstance(err, GZIP_ERRORS) and not is_no_gzip(path):
            raise _damaged(path, err) from err
        raise VolumeError(
            f"{path.name}: expected a NIfTI file, got an unreadable header "
            f"({first_line(err)}); check that the file is complete and of that type."
        ) from err
    if image is None:
        raise VolumeError(
            f"{path.name}: expected a finite affine, got {affine.tolist()}; repair the header."
        )
    return image


def header_of(content: bytes) -> tuple[type[nib.Nifti1Image], nib.Nifti1Header]:
    """The header at the beginning of a file, and the kind of image that it is of.

    nibabel's own checks would repair what is wrong, and report it on stderr.

    Raises:
        ValueError: Something in it means nothing; or whatever nibabel raises.
    """
    sizes = [size for size, magic in _MAGIC.items() if content[magic] in _KINDS]
    if not sizes:
        raise ValueError("no magic number of NIfTI")
    kind = _KINDS[content[_MAGIC[sizes[0]]]]
    size = kind.header_class.sizeof_hdr
    header = kind.header_class(content[:size], check=False)
    check_fields(header)
    if not size <= float(header["vox_offset"]) <= _LONGEST_OFFSET:
        raise ValueError(f"voxels at byte {float(header['vox_offset']):g}")
    return kind, header


def check_fields(header: Any) -> None:
    """Refuse a header in which something means nothing.

    Raises:
        ValueError: It is one; or whatever nibabel raises.
    """
    if int(header["sizeof_hdr"]) != header.sizeof_hdr:
        raise ValueError(f"a header of {int(header['sizeof_hdr'])} bytes")
    dimensions = int(header["dim"][0])
    if not 1 <= dimensions <= 7:
        raise ValueError(f"dimensions {header['dim'].tolist()}")
    for form in ("sform_code", "qform_code"):
        if int(header[form]) not in (0, *WORLD_CODES):
            raise ValueError(f"{form} {int(header[form])}")
    if int(header["xyzt_units"]) & 7 not in UNITS_MM:
        raise ValueError(f"unit {int(header['xyzt_units']) & 7} of length")
    header.get_data_dtype()
    header.get_slope_inter()
    header.get_best_affine()


def _complete(path: Path, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """The same image with all its bytes, which the header must have promised."""
    compressed = path.name.endswith(".gz")
    _check_size(path, image, compressed)
    promised = _promised_bytes(image)
    try:
        # One byte more than promised, so that gzip meets the end and verifies its checksum.
        with reading(path, compressed) as stream:
            content = stream.read(promised + 1)
    except GZIP_ERRORS as err:
        raise _damaged(path, err) from err
    if len(content) < promised:
        raise VolumeError(
            f"{path.name}: expected {promised} bytes as its header says, got {len(content)}: the "
            "file is truncated; copy it again."
        )
    known: Any = (
        image.dataobj
    )  # by the file's header; the image's own says nothing of offset and slope
    spec = known.shape, known.dtype, known.offset, known.slope, known.inter
    proxy = ArrayProxy(io.BytesIO(content), spec)
    return type(image)(proxy, image.affine, image.header)


def write_nifti(
    path: str | Path, data: np.ndarray, grid: Grid, intent: str | int = "none", **header: object
) -> None:
    """Write an array in its own dtype; its first three axes lie on `grid`.

    Args:
        path: .nii or .nii.gz.
        data: Three axes or more.
        grid: Where the voxels are.
        intent: NIfTI intent, by nibabel's name or by number.
        header: Further header fields by their NIfTI names.
    """
    image = nib.Nifti1Image(data, grid.affine, _header(grid, intent, **header), dtype=data.dtype)
    path = Path(path)
    with writing(path, path.name.endswith(".gz")) as stream:
        image.to_stream(stream)


@contextmanager
def writing_series(
    path: str | Path, grid: Grid, count: int, step: float, dtype: np.dtype
) -> Iterator[Callable[[np.ndarray], None]]:
    """Write a series volume by volume, so that only one of them is in memory.

    Args:
        path: .nii or .nii.gz.
        grid: Of every volume.
        count: How many volumes are to come.
        step: Seconds from one to the next.
        dtype: Of the voxels.

    Yields:
        A function that appends a volume (i, j, k).
    """
    header = _header(grid, "none")
    header.set_data_dtype(dtype)
    header.set_data_shape((*grid.shape, count))
    header["pixdim"][4] = step
    header.set_data_offset(352)
    path = Path(path)
    with writing(path, path.name.endswith(".gz")) as stream:
        header.write_to(stream)

        def append(volume: np.ndarray) -> None:
            assert volume.shape == grid.shape, volume.shape
            stream.write(np.asarray(volume, dtype).tobytes(order="F"))

        yield append


def _header(grid: Grid, intent: str | int, **fields: object) -> nib.Nifti1Header:
    header = nib.Nifti1Header()
    header.set_data_shape(grid.shape)
    header.set_zooms(grid.spacing)
    header.set_intent(intent)
    # Both codes, because readers differ in which of the two they prefer.
    header.set_sform(grid.affine, code=grid.world_code)
    header.set_qform(grid.affine, code=grid.world_code)
    header.set_xyzt_units("mm", "sec")
    for field, value in fields.items():
        header[field] = value
    return header


def check_voxels(path: Path, image: Any) -> None:
    """Refuse voxels that are not real-valued.

    Raises:
        VolumeError: Colours or complex numbers.
    """
    dtype = image.get_data_dtype()
    if dtype.kind not in "iuf":
        kind = "colour" if dtype.fields else "complex" if dtype.kind == "c" else str(dtype)
        raise VolumeError(
            f"{path.name}: expected one real number per voxel, got {kind} voxels; "
            "convert it to a greyscale image first."
        )


def _check_size(path: Path, image: nib.Nifti1Image, compressed: bool) -> None:
    voxels = int(np.prod([int(n) for n in image.shape], dtype=object))
    size = path.stat().st_size
    is_possible = may_hold(size, _promised_bytes(image), voxels, compressed)
    if voxels > MAX_VOXELS or not is_possible:
        raise VolumeError(
            f"{path.name}: expected voxels that fit the file, got a header of shape {image.shape} "
            f"in {size} bytes: it is truncated or absurd; check the file."
        )


def _promised_bytes(image: Any) -> int:
    voxels = int(np.prod([int(n) for n in image.shape], dtype=object))
    return int(image.dataobj.offset) + voxels * image.get_data_dtype().itemsize


def _damaged(path: Path, err: Exception) -> VolumeError:
    return VolumeError(
        f"{path.name}: expected a complete file, got damaged or truncated data "
        f"({first_line(err)}); copy it again."
    )


def first_line(err: Exception) -> str:
    """Of an error's message, or its type; what follows is not for a sentence."""
    return (str(err).splitlines() or [type(err).__name__])[0].rstrip(".")

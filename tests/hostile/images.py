"""Image files that are not what they seem: each maker writes one and returns its path."""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from ..runtime.phantoms import centred_grid, head, world_points

Maker = Callable[[Path], Path]
REFUSED: dict[str, Maker] = {}
#: Odd, and yet a good image.
TAKEN: dict[str, Maker] = {}

GRID = centred_grid("RAS", (16, 18, 14), (3.0, 3.0, 3.0))
DATA = head(world_points(GRID))
HEADER_BYTES = 352


def refused(make: Maker) -> Maker:
    REFUSED[make.__name__] = make
    return make


def taken(make: Maker) -> Maker:
    TAKEN[make.__name__] = make
    return make


def nifti(data: np.ndarray = DATA, affine: np.ndarray = GRID.affine) -> bytes:
    """The content of a plain NIfTI file."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_xyzt_units("mm")
    return image.to_bytes()


def patched(offset: int, format: str, *values: float, content: bytes | None = None) -> bytes:
    """The same with some of the header's fields overwritten, unchecked."""
    found = bytearray(content or nifti())
    struct.pack_into("<" + format, found, offset, *values)
    return bytes(found)


def written(folder: Path, content: bytes, name: str = "bad.nii") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    return path


# Fields of NIfTI-1: what is in them, where, and how it is packed.
_FIELDS: dict[str, tuple[int, str, tuple[float, ...]]] = {
    "size_of_header": (0, "i", (999,)),
    "no_dimensions": (40, "h", (0,)),
    "nine_dimensions": (40, "h", (9,)),
    "negative_dimensions": (40, "h", (-3,)),
    "a_side_of_0": (42, "h", (0,)),
    "a_negative_side": (42, "h", (-16,)),
    "a_side_too_long": (42, "h", (32000,)),
    "all_sides_absurd": (42, "3h", (32767, 32767, 32767)),
    "unknown_type": (70, "h", (9999,)),
    "type_of_0": (70, "h", (0,)),
    "complex_type": (70, "h", (32,)),
    "colour_type": (70, "h", (128,)),
    "float128_type": (70, "h", (1536,)),
    "type_larger_than_the_file": (70, "h", (64,)),
    "voxels_nowhere": (108, "f", (float("nan"),)),
    "voxels_at_infinity": (108, "f", (float("inf"),)),
    "voxels_before_the_file": (108, "f", (-400.0,)),
    "voxels_behind_the_file": (108, "f", (1e9,)),
    "nan_in_sform": (280, "f", (float("nan"),)),
    "inf_in_sform": (292, "f", (float("inf"),)),
    "singular_sform": (280, "12f", (0.0,) * 12),
    "sheared_sform": (280, "4f", (3.0, 1.5, 0.0, -20.0)),
    "voxels_of_1e30_mm": (280, "12f", (1e30, 0, 0, 0, 0, 1e30, 0, 0, 0, 0, 1e30, 0)),
    "voxels_of_a_nanometre": (280, "12f", (1e-7, 0, 0, 0, 0, 1e-7, 0, 0, 0, 0, 1e-7, 0)),
    "sform_code_minus_1": (252, "2h", (0, -1)),
    "sform_code_99": (252, "2h", (0, 99)),
    "no_orientation_codes": (252, "2h", (0, 0)),
    "qform_code_minus_1": (252, "2h", (-1, 0)),
    "nan_quaternion": (252, "2h4f", (1, 0, *(float("nan"),) * 4)),
    "unknown_units": (123, "b", (5,)),
    "negative_units": (123, "b", (7,)),
    "wrong_magic": (344, "4s", (b"abcd",)),  # type: ignore[dict-item]
    "magic_of_a_pair": (344, "4s", (b"ni1\0",)),  # type: ignore[dict-item]
    "nan_slope_inf_intercept": (112, "2f", (1.0, float("inf"))),
    "overflowing_slope": (112, "2f", (3e38, 0.0)),
}
for _name, (_offset, _format, _values) in _FIELDS.items():
    for _suffix in (".nii", ".nii.gz"):

        def _make(folder: Path, field=(_offset, _format, _values), suffix=_suffix) -> Path:
            return written(folder, patched(field[0], field[1], *field[2]), f"bad{suffix}")

        REFUSED[f"{_name}{_suffix}"] = _make


# The same of NIfTI-2, whose numbers have 64 bits.
_FIELDS_2: dict[str, tuple[int, str, tuple[float, ...]]] = {
    "voxels_beyond_64_bits": (16, "4q", (3, 2**62, 4, 4)),
    "a_negative_side": (24, "q", (-16,)),
    "no_dimensions": (16, "q", (0,)),
    "endless_dimensions": (16, "q", (2**40,)),
    "voxels_before_the_file": (168, "q", (-5,)),
    "voxels_behind_the_file": (168, "q", (2**62,)),
    "nan_in_sform": (400, "d", (float("nan"),)),
    "voxels_of_1e300_mm": (400, "12d", (1e300, 0, 0, 0, 0, 1e300, 0, 0, 0, 0, 1e300, 0)),
    "voxels_of_1e-300_mm": (400, "12d", (1e-300, 0, 0, 0, 0, 1e-300, 0, 0, 0, 0, 1e-300, 0)),
    "sform_code_beyond_16_bits": (348, "i", (2**31 - 1,)),
    "unknown_units": (500, "i", (2**31 - 1,)),
    "negative_type": (12, "h", (-4,)),
}
for _name, (_offset, _format, _values) in _FIELDS_2.items():

    def _make_2(folder: Path, field=(_offset, _format, _values)) -> Path:
        content = nib.Nifti2Image(DATA, GRID.affine).to_bytes()
        return written(folder, patched(field[0], field[1], *field[2], content=content))

    REFUSED[f"nifti2_{_name}"] = _make_2


def _of_values(name: str, data: np.ndarray) -> None:
    REFUSED[name] = lambda folder: written(folder, nifti(data))


_of_values("one_nan", np.where(np.arange(DATA.size).reshape(DATA.shape) == 77, np.nan, DATA))
_of_values("one_inf", np.where(np.arange(DATA.size).reshape(DATA.shape) == 77, np.inf, DATA))
_of_values("constant", np.full_like(DATA, 7))
_of_values("zeros", np.zeros_like(DATA))
_of_values("denormal", (DATA * 1e-42).astype(np.float32))
_of_values("beyond_float32", DATA.astype(np.float64) * 1e60)
_of_values("nearly_beyond_float32", (DATA / DATA.max() * 3e38).astype(np.float32))
_of_values("a_slice", DATA[:, :, 7])
_of_values("a_slice_of_3_dimensions", DATA[:, :, 7:8])
_of_values("a_series", np.stack([DATA, DATA], -1))
_of_values("five_dimensions", np.stack([DATA, DATA], -1)[:, :, :, None])
_of_values("a_line", DATA[:, 3, 3])


@refused
def empty(folder: Path) -> Path:
    return written(folder, b"")


@refused
def empty_gz(folder: Path) -> Path:
    path = folder / "bad.nii.gz"
    path.touch()
    return path


@refused
def text(folder: Path) -> Path:
    return written(folder, b"this is no image\n" * 100)


@refused
def text_called_gz(folder: Path) -> Path:
    path = folder / "bad.nii.gz"
    path.write_bytes(b"this is no gzip\n" * 100)
    return path


for _count in (1, 4, 100, 347, 348, 351, 352, 400, 9000):

    def _cut(folder: Path, count=_count) -> Path:
        return written(folder, nifti()[:count])

    REFUSED[f"cut_to_{_count}"] = _cut
for _part in (0.01, 0.5, 0.99, 0.9999):

    def _cut_gz(folder: Path, part=_part) -> Path:
        content = gzip.compress(nifti())
        path = folder / "bad.nii.gz"
        path.write_bytes(content[: int(len(content) * part)])
        return path

    REFUSED[f"gz_cut_at_{_part}"] = _cut_gz


@refused
def gz_of_another_checksum(folder: Path) -> Path:
    content = bytearray(gzip.compress(nifti()))
    content[-5] ^= 1
    path = folder / "bad.nii.gz"
    path.write_bytes(content)
    return path


@refused
def gz_with_a_flipped_byte(folder: Path) -> Path:
    content = bytearray(gzip.compress(nifti()))
    content[len(content) // 2] ^= 255
    path = folder / "bad.nii.gz"
    path.write_bytes(content)
    return path


@refused
def gz_of_gz(folder: Path) -> Path:
    path = folder / "bad.nii.gz"
    path.write_bytes(gzip.compress(gzip.compress(nifti())))
    return path


def _bomb(path: Path, head_of_it: bytes, megabytes: int) -> Path:
    """Zeros without end, in little room; only whoever reads them all meets a wrong checksum."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    start = packer.compress(head_of_it) + packer.flush(zlib.Z_FULL_FLUSH)
    # What follows a full flush does not depend on what came before, so one piece does for all.
    piece = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    path.write_bytes(start + piece * megabytes + packer.flush())
    return path


@refused
def zeros_of_1024_cubed(folder: Path) -> Path:
    header = patched(42, "3h", 1024, 1024, 1024)[:HEADER_BYTES]
    return _bomb(folder / "bad.nii.gz", header, 4096)


@refused
def zeros_of_1000_cubed_in_a_megabyte(folder: Path) -> Path:
    """Of one byte each, they are as many as a mask may be empty; as floats they are not."""
    header = patched(42, "3h", 1000, 1000, 1000, content=patched(70, "2h", 2, 8))
    return _bomb(folder / "bad.nii.gz", header[:HEADER_BYTES], 954)


@refused
def much_more_than_announced(folder: Path) -> Path:
    """The header says 16 × 18 × 14; what follows the voxels is nothing that anybody reads."""
    return _bomb(folder / "bad.nii.gz", patched(70, "h", 9999), 1024)


@refused
def extensions_of_16_bytes_without_end(folder: Path) -> Path:
    header = bytearray(patched(108, "f", 5e8)[:HEADER_BYTES])
    header[348] = 1
    piece = struct.pack("<2i8x", 16, 0) * 2**16
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    path = folder / "bad.nii.gz"
    with path.open("wb") as stream:
        stream.write(packer.compress(bytes(header)))
        for _ in range(500):
            stream.write(packer.compress(piece))
        stream.write(packer.flush())
    return path


# --- no regular files -----------------------------------------------------------------------------

for _suffix in (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr", ".img", ".hdr.gz"):

    def _fifo(folder: Path, suffix=_suffix) -> Path:
        path = folder / f"bad{suffix}"
        os.mkfifo(path)
        return path

    def _device(folder: Path, suffix=_suffix) -> Path:
        path = folder / f"bad{suffix}"
        path.symlink_to("/dev/zero")
        return path

    def _missing(folder: Path, suffix=_suffix) -> Path:
        return folder / f"bad{suffix}"

    def _circle(folder: Path, suffix=_suffix) -> Path:
        path = folder / f"bad{suffix}"
        path.symlink_to(path.name)
        return path

    def _nothing(folder: Path, suffix=_suffix) -> Path:
        path = folder / f"bad{suffix}"
        path.touch()
        return path

    def _noise(folder: Path, suffix=_suffix) -> Path:
        path = folder / f"bad{suffix}"
        path.write_bytes(np.random.default_rng(1).bytes(5000))
        return path

    for _what in (_fifo, _device, _missing, _circle, _nothing, _noise):
        REFUSED[f"{_what.__name__.strip('_')}{_suffix}"] = _what


@refused
def a_folder_called_nii(folder: Path) -> Path:
    path = folder / "bad.nii"
    path.mkdir()
    return path


@refused
def below_a_file(folder: Path) -> Path:
    return written(folder, nifti()) / "further.nii"


@refused
def a_name_too_long(folder: Path) -> Path:
    return folder / ("x" * 300 + ".nii.gz")


@refused
def a_name_of_two_lines(folder: Path) -> Path:
    return folder / "one\nand two.nii.gz"


@refused
def a_name_that_is_not_utf8(folder: Path) -> Path:
    return folder / os.fsdecode(b"caf\xe9.nrrd")


@refused
def another_suffix(folder: Path) -> Path:
    return written(folder, nifti(), "bad.jpg")


@refused
def no_suffix(folder: Path) -> Path:
    return written(folder, nifti(), "bad")


@refused
def an_empty_folder(folder: Path) -> Path:
    path = folder / "dicom"
    path.mkdir()
    return path


@refused
def a_folder_with_a_fifo(folder: Path) -> Path:
    path = an_empty_folder(folder)
    os.mkfifo(path / "slice.dcm")
    return path


@refused
def a_folder_with_a_device(folder: Path) -> Path:
    path = an_empty_folder(folder)
    (path / "slice.dcm").symlink_to("/dev/zero")
    return path


@refused
def a_folder_of_noise(folder: Path) -> Path:
    path = an_empty_folder(folder)
    for number in range(4):
        (path / f"{number}.dcm").write_bytes(np.random.default_rng(number).bytes(3000))
    return path


def dicom(folder: Path, **changes: str) -> Path:
    """A series of 6 slices; the third has other values of the tags."""
    path = an_empty_folder(folder)
    volume = (DATA[:, :, :6] * 10).astype(np.int16)
    for number in range(6):
        image = sitk.GetImageFromArray(np.ascontiguousarray(volume[:, :, number].T)[None])
        image.SetSpacing((3.0, 3.0, 3.0))
        tags = {
            "0008|0060": "MR",
            "0020|000e": "1.2.3.4",
            "0020|000d": "1.2.3",
            "0020|0013": str(number),
            "0020|0032": f"-20\\-20\\{3 * number}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
        }
        if number == 2:
            tags |= {key.replace("x", "|"): value for key, value in changes.items()}
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(path / f"{number}.dcm"))
        writer.Execute(image)
    return path


def _patched_dicom(folder: Path, before: bytes, after: bytes) -> Path:
    path = dicom(folder)
    slice_ = path / "2.dcm"
    content = slice_.read_bytes()
    assert before in content
    slice_.write_bytes(content.replace(before, after.ljust(len(before))))
    return path


@refused
def dicom_at_nan(folder: Path) -> Path:
    return _patched_dicom(folder, b"-20\\-20\\6", b"nan\\20\\6")


@refused
def dicom_at_words(folder: Path) -> Path:
    return _patched_dicom(folder, b"-20\\-20\\6", b"abc\\20\\6")


@refused
def dicom_without_a_slice(folder: Path) -> Path:
    path = dicom(folder)
    (path / "2.dcm").unlink()
    return path


@refused
def dicom_with_a_cut_slice(folder: Path) -> Path:
    path = dicom(folder)
    slice_ = path / "2.dcm"
    slice_.write_bytes(slice_.read_bytes()[:-200])
    return path


# --- NRRD and MetaImage ---------------------------------------------------------------------------

_NRRD = """NRRD0004
type: float
dimension: 3
space: left-posterior-superior
sizes: 16 18 14
space directions: (3,0,0) (0,3,0) (0,0,3)
kinds: domain domain domain
endian: little
encoding: raw
space origin: (-22,-25,-20)
"""
_MHA = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = 1 0 0 0 1 0 0 0 1
Offset = -22 -25 -20
ElementSpacing = 3 3 3
DimSize = 16 18 14
ElementType = MET_FLOAT
ElementDataFile = LOCAL
"""


def _header(text: str, before: str, after: str) -> bytes:
    assert before in text, before
    return text.replace(before, after).encode()


_IN_NRRD = {
    "sizes_of_0": ("16 18 14", "0 18 14"),
    "negative_sizes": ("16 18 14", "-16 18 14"),
    "sizes_of_words": ("16 18 14", "a b c"),
    "sizes_absurd": ("16 18 14", "100000 100000 100000"),
    "sizes_beyond_64_bits": ("16 18 14", "99999999999999999999 1 1"),
    "sizes_larger_than_the_file": ("16 18 14", "160 180 140"),
    "too_few_sizes": ("16 18 14", "16 18"),
    "negative_dimension": ("dimension: 3", "dimension: -3"),
    "dimension_of_17": ("dimension: 3", "dimension: 17"),
    "unknown_type": ("type: float", "type: quark"),
    "block_type": ("type: float", "type: block"),
    "unknown_encoding": ("encoding: raw", "encoding: zip"),
    "bzip2_that_is_none": ("encoding: raw", "encoding: bzip2"),
    "text_that_is_none": ("encoding: raw", "encoding: ascii"),
    "nan_directions": ("(3,0,0)", "(nan,0,0)"),
    "inf_origin": ("(-22,", "(inf,"),
    "singular_directions": ("(3,0,0) (0,3,0)", "(3,0,0) (3,0,0)"),
    "sheared_directions": ("(3,0,0) (0,3,0)", "(3,0,0) (2,3,0)"),
    "no_directions": ("space directions: (3,0,0) (0,3,0) (0,0,3)\n", ""),
    "a_file_of_its_own": ("encoding: raw", "data file: other.raw\nencoding: raw"),
    "a_device_for_data": ("encoding: raw", "data file: /dev/zero\nencoding: raw"),
    "a_secret_for_data": ("encoding: raw", "data file: /etc/passwd\nencoding: raw"),
    "byte_skip": ("encoding: raw", "byte skip: 999999999\nencoding: raw"),
    "line_skip": ("encoding: raw", "line skip: 999999999\nencoding: raw"),
    "a_line_without_end": ("encoding: raw", "comment: " + "x" * 10**6 + "\nencoding: raw"),
}
for _name, (_before, _after) in _IN_NRRD.items():

    def _nrrd(folder: Path, before=_before, after=_after) -> Path:
        content = _header(_NRRD, before, after) + b"\n"
        return written(folder, content + DATA.tobytes(order="F"), "bad.nrrd")

    REFUSED[f"nrrd_{_name}"] = _nrrd

_IN_MHA = {
    "no_dimensions": ("NDims = 3", "NDims = 0"),
    "negative_dimensions": ("NDims = 3", "NDims = -1"),
    "many_dimensions": ("NDims = 3", "NDims = 99999"),
    "sizes_of_0": ("16 18 14", "0 18 14"),
    "negative_sizes": ("16 18 14", "-16 18 14"),
    "sizes_absurd": ("16 18 14", "100000 100000 100000"),
    "sizes_larger_than_the_file": ("16 18 14", "160 180 140"),
    "too_few_sizes": ("16 18 14", "16 18"),
    "unknown_type": ("MET_FLOAT", "MET_QUARK"),
    "larger_type": ("MET_FLOAT", "MET_DOUBLE"),
    "nan_spacing": ("ElementSpacing = 3", "ElementSpacing = nan"),
    "spacing_of_0": ("ElementSpacing = 3", "ElementSpacing = 0"),
    "nan_offset": ("Offset = -22", "Offset = nan"),
    "singular_matrix": ("1 0 0 0 1 0 0 0 1", "1 0 0 1 0 0 0 0 1"),
    "sheared_matrix": ("1 0 0 0 1 0 0 0 1", "1 0 0 0.5 1 0 0 0 1"),
    "colours": ("ElementType", "ElementNumberOfChannels = 3\nElementType"),
    "absurd_channels": ("ElementType", "ElementNumberOfChannels = 999999999\nElementType"),
    "negative_channels": ("ElementType", "ElementNumberOfChannels = -3\nElementType"),
    "compressed_that_is_not": ("CompressedData = False", "CompressedData = True"),
    "a_file_that_is_not_there": ("LOCAL", "other.raw"),
    "a_device": ("LOCAL", "/dev/zero"),
    "a_list": ("LOCAL", "LIST\nother.raw"),
    "a_pattern": ("LOCAL", "slice%03d.raw 1 14 1"),
    "no_data": ("ElementDataFile = LOCAL\n", ""),
    "header_size": ("ElementType", "HeaderSize = 999999999\nElementType"),
}
for _name, (_before, _after) in _IN_MHA.items():

    def _mha(folder: Path, before=_before, after=_after) -> Path:
        return written(folder, _header(_MHA, before, after) + DATA.tobytes(order="F"), "bad.mha")

    REFUSED[f"mha_{_name}"] = _mha


@refused
def nrrd_of_1024_cubed(folder: Path) -> Path:
    """Doubles that would be 8 GiB, in 166 kB."""
    text = _NRRD.replace("float", "double").replace("16 18 14", "1024 1024 1024")
    content = gzip.compress(bytes(150 * 2**20), 1)
    return written(folder, text.replace("raw", "gzip").encode() + b"\n" + content, "bad.nrrd")


@refused
def nrrd_of_1024_cubed_by_bzip2(folder: Path) -> Path:
    """ITK makes room for it, and lacks bzip2 then."""
    text = _NRRD.replace("16 18 14", "1024 1024 1024").replace("raw", "bzip2")
    return written(folder, text.encode() + b"\n" + bz2.compress(bytes(2**20)), "bad.nrrd")


@refused
def mha_of_1024_cubed(folder: Path) -> Path:
    text = _MHA.replace("MET_FLOAT", "MET_DOUBLE").replace("16 18 14", "1024 1024 1024")
    text = text.replace("CompressedData = False", "CompressedData = True")
    return written(folder, text.encode() + zlib.compress(bytes(150 * 2**20), 1), "bad.mha")


@refused
def mhd_whose_data_are_a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "bad.raw")
    return written(folder, _header(_MHA, "LOCAL", "bad.raw"), "bad.mhd")


@refused
def nhdr_whose_data_are_a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "bad.raw")
    text = _header(_NRRD, "encoding: raw", "data file: bad.raw\nencoding: raw")
    return written(folder, text, "bad.nhdr")


@refused
def nhdr_of_many_files_one_of_them_a_fifo(folder: Path) -> Path:
    for number in range(14):
        (folder / f"s{number}.raw").write_bytes(DATA[:, :, number].tobytes(order="F"))
    (folder / "s3.raw").unlink()
    os.mkfifo(folder / "s3.raw")
    names = "\n".join(f"s{number}.raw" for number in range(14))
    return written(folder, (_NRRD + f"data file: LIST 2\n{names}\n").encode(), "bad.nhdr")


# --- Analyze --------------------------------------------------------------------------------------


@refused
def analyze_without_voxels(folder: Path) -> Path:
    return written(folder, patched(344, "4s", b"ni1\0")[:348], "bad.hdr")


@refused
def analyze_cut(folder: Path) -> Path:
    written(folder, DATA.tobytes(order="F")[:1000], "bad.img")
    return written(folder, patched(344, "4s", b"ni1\0")[:348], "bad.hdr")


@refused
def analyze_whose_voxels_are_a_fifo(folder: Path) -> Path:
    os.mkfifo(folder / "bad.img")
    return written(folder, patched(344, "4s", b"ni1\0")[:348], "bad.hdr")


@refused
def analyze_of_endless_voxels(folder: Path) -> Path:
    _bomb(folder / "bad.img.gz", b"", 3000)
    return written(folder, patched(344, "4s", b"ni1\0")[:348], "bad.hdr")


def analyze(folder: Path, offset: int, format: str, values: tuple[float, ...]) -> Path:
    """An image of SPM with some of its header's fields overwritten."""
    header = nib.Spm99AnalyzeHeader()
    header.set_data_dtype(np.float32)
    header.set_data_shape(DATA.shape)
    header.set_zooms((3.0, 3.0, 3.0))
    written(folder, DATA.tobytes(order="F"), "bad.img")
    content = patched(offset, format, *values, content=header.binaryblock)
    return written(folder, content, "bad.hdr")


#: Refused although somebody says where its axes point: a field of the header, and what is in it.
ANALYZE: dict[str, tuple[int, str, tuple[float, ...]]] = {
    "sides_of_0": (80, "3f", (0, 3, 3)),
    "sides_of_nan": (80, "3f", (float("nan"), 3, 3)),
    "sides_of_1e30": (80, "3f", (1e30, 3, 3)),
    "negative_shape": (42, "3h", (-16, 18, 14)),
    "absurd_shape": (42, "3h", (32767, 32767, 32767)),
    "nine_dimensions": (40, "h", (9,)),
    "unknown_type": (70, "h", (77,)),
    "colours": (70, "h", (128,)),
    "voxels_nowhere": (108, "f", (float("nan"),)),
    "voxels_behind_the_file": (108, "f", (1e9,)),
}


# --- odd, and good --------------------------------------------------------------------------------


@taken
def microns(folder: Path) -> Path:
    image = nib.Nifti1Image(DATA, np.diag([1000, 1000, 1000, 1]) @ GRID.affine)
    image.header.set_xyzt_units("micron")
    nib.save(image, folder / "odd.nii.gz")
    return folder / "odd.nii.gz"


@taken
def metres(folder: Path) -> Path:
    image = nib.Nifti1Image(DATA, np.diag([1e-3, 1e-3, 1e-3, 1]) @ GRID.affine)
    image.header.set_xyzt_units("meter")
    nib.save(image, folder / "odd.nii.gz")
    return folder / "odd.nii.gz"


@taken
def big_endian(folder: Path) -> Path:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">f4")
    nib.save(nib.Nifti1Image(DATA.astype(">f4"), GRID.affine, header), folder / "odd.nii")
    return folder / "odd.nii"


@taken
def nifti2(folder: Path) -> Path:
    nib.save(nib.Nifti2Image(DATA, GRID.affine), folder / "odd.nii.gz")
    return folder / "odd.nii.gz"


@taken
def with_an_extension(folder: Path) -> Path:
    image = nib.Nifti1Image(DATA, GRID.affine)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"hello"))
    nib.save(image, folder / "odd.nii.gz")
    return folder / "odd.nii.gz"


@taken
def extensions_without_end(folder: Path) -> Path:
    return written(folder, patched(348, "4b", 1, 0, 0, 0), "odd.nii")


@taken
def scaled_integers(folder: Path) -> Path:
    image = nib.Nifti1Image(DATA.astype(np.int16), GRID.affine)
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, folder / "odd.nii.gz")
    return folder / "odd.nii.gz"


@taken
def doubles_in_two_gzip_members(folder: Path) -> Path:
    content = nifti(DATA.astype(np.float64))
    path = folder / "odd.nii.gz"
    path.write_bytes(gzip.compress(content[:3000]) + gzip.compress(content[3000:]))
    return path


@taken
def qform_alone(folder: Path) -> Path:
    image = nib.Nifti1Image(DATA, None)
    image.set_qform(GRID.affine, 1)
    image.set_sform(None, 0)
    nib.save(image, folder / "odd.nii.gz")
    return folder / "odd.nii.gz"


@taken
def a_link(folder: Path) -> Path:
    (folder / "odd.nii").symlink_to(written(folder, nifti()))
    return folder / "odd.nii"


@taken
def nrrd(folder: Path) -> Path:
    return written(folder, _NRRD.encode() + b"\n" + DATA.tobytes(order="F"), "odd.nrrd")


@taken
def nrrd_gzip(folder: Path) -> Path:
    text = _NRRD.replace("raw", "gzip").encode()
    return written(folder, text + b"\n" + gzip.compress(DATA.tobytes(order="F")), "odd.nrrd")


@taken
def nrrd_in_text(folder: Path) -> Path:
    text = _NRRD.replace("raw", "ascii")
    numbers = " ".join(f"{value:.3f}" for value in DATA.ravel(order="F"))
    return written(folder, f"{text}\n{numbers}\n".encode(), "odd.nrrd")


@taken
def nhdr_of_slices(folder: Path) -> Path:
    for number in range(14):
        (folder / f"s{number}.raw").write_bytes(DATA[:, :, number].tobytes(order="F"))
    names = "\n".join(f"s{number}.raw" for number in range(14))
    return written(folder, (_NRRD + f"data file: LIST 2\n{names}\n").encode(), "odd.nhdr")


@taken
def nhdr_with_its_data(folder: Path) -> Path:
    (folder / "odd.raw").write_bytes(b"12345678" + DATA.tobytes(order="F"))
    text = _header(_NRRD, "encoding: raw", "data file: odd.raw\nbyte skip: 8\nencoding: raw")
    return written(folder, text, "odd.nhdr")


@taken
def mha(folder: Path) -> Path:
    return written(folder, _MHA.encode() + DATA.tobytes(order="F"), "odd.mha")


@taken
def mha_compressed(folder: Path) -> Path:
    content = zlib.compress(DATA.tobytes(order="F"))
    said = f"CompressedData = True\nCompressedDataSize = {len(content)}"
    text = _MHA.replace("CompressedData = False", said)
    return written(folder, text.encode() + content, "odd.mha")


@taken
def mhd_with_its_data(folder: Path) -> Path:
    (folder / "odd.raw").write_bytes(DATA.tobytes(order="F"))
    return written(folder, _header(_MHA, "LOCAL", "odd.raw"), "odd.mhd")


@taken
def dicom_series(folder: Path) -> Path:
    return dicom(folder)


@taken
def nifti_pair(folder: Path) -> Path:
    written(folder, DATA.tobytes(order="F"), "odd.img")
    header = patched(108, "f", 0.0, content=patched(344, "4s", b"ni1\0"))[:348]
    return written(folder, header, "odd.hdr")

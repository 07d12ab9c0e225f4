from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt.errors import VolumeError
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.checks import check_image, check_same_grid
from paramorph_rt.images.volume import Volume, load_labels, load_volume, save_labels, save_volume

from .phantoms import affine_of, write_nifti

SHAPE = (5, 6, 7)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def sentence(match: str) -> str:
    """Match an error of one sentence that says this, what was expected, and what to do."""
    return rf"^[^\n]*: (?=expected )[^\n]*{match}[^\n]*; [^\n]*\.$"


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "oblique"])
def test_volume_survives_saving(tmp_path, image, suffix, orientation):
    grid = Grid(SHAPE, affine_of(orientation, (1.0, 1.5, 3.0), (10.0, -20.0, 30.0)))
    save_volume(tmp_path / f"v{suffix}", Volume(image, grid))
    loaded = load_volume(tmp_path / f"v{suffix}")
    np.testing.assert_array_equal(loaded.data, image)
    assert loaded.grid.matches(grid, 1e-4)


def test_saved_volume_has_both_codes_and_is_read_by_itk(tmp_path, image):
    grid = Grid(SHAPE, affine_of("LAS", (1.0, 1.5, 3.0), (10.0, -20.0, 30.0)))
    save_volume(tmp_path / "v.nii.gz", Volume(image, grid))
    header = nib.load(tmp_path / "v.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    read = sitk.ReadImage(tmp_path / "v.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read).T, image)
    np.testing.assert_allclose(read.GetOrigin(), (-10.0, 20.0, 30.0), atol=1e-5)


def test_equal_volumes_give_equal_files_that_gzip_reads(tmp_path, image):
    for name in ("a.nii.gz", "b.nii.gz", "c.nii"):
        save_volume(tmp_path / name, Volume(image, Grid(image.shape, affine_of("RAS"))))
    first, second, plain = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second
    assert gzip.decompress(first) == plain


def test_scaled_integers_become_intensities(tmp_path):
    stored = nib.Nifti1Image(np.arange(210, dtype=np.int16).reshape(SHAPE), np.eye(4))
    stored.header.set_slope_inter(2.0, 5.0)
    nib.save(stored, tmp_path / "v.nii")
    raw = nib.load(tmp_path / "v.nii")
    loaded = load_volume(tmp_path / "v.nii")
    assert loaded.data.dtype == np.float32
    np.testing.assert_allclose(loaded.data, raw.get_fdata())


def test_single_time_point_is_a_volume(tmp_path, image):
    path = write_nifti(tmp_path / "v.nii.gz", image[..., np.newaxis, np.newaxis])
    np.testing.assert_array_equal(load_volume(path).data, image)


@pytest.mark.parametrize("dtype", ["uint8", "<i2", ">i2", "uint16", "int32"])
def test_labels_keep_the_integer_type_of_the_file(tmp_path, dtype):
    labels = (np.arange(210).reshape(SHAPE) % 5).astype(dtype)
    loaded = load_labels(write_nifti(tmp_path / "l.nii.gz", labels))
    np.testing.assert_array_equal(loaded.data, labels)
    assert loaded.data.dtype == labels.dtype.newbyteorder("=")
    save_labels(tmp_path / "again.nii.gz", loaded)
    assert load_labels(tmp_path / "again.nii.gz").data.dtype == loaded.data.dtype


def test_whole_floats_are_labels(tmp_path):
    labels = (np.arange(210).reshape(SHAPE) % 5).astype(np.float32)
    loaded = load_labels(write_nifti(tmp_path / "l.nii.gz", labels))
    assert loaded.data.dtype == np.int32
    np.testing.assert_array_equal(loaded.data, labels)


@pytest.mark.parametrize(
    ("value", "match"), [(0.5, "whole numbers"), (np.nan, "not finite"), (1e12, "too large")]
)
def test_labels_must_be_whole_numbers(tmp_path, value, match):
    labels = np.full(SHAPE, value, dtype=np.float64)
    with pytest.raises(VolumeError, match=match):
        load_labels(write_nifti(tmp_path / "l.nii.gz", labels))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize("may_be_empty", [False, True])
def test_labels_must_survive_resampling(tmp_path, dtype, may_be_empty):
    labels = np.zeros(SHAPE, dtype)
    labels[1, 2, 3] = 2**53
    path = tmp_path / "l.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype=dtype), path)
    assert load_labels(path, may_be_empty).data.max() == 2**53
    labels[1, 2, 3] += dtype(1)
    nib.save(nib.Nifti1Image(labels, np.eye(4), dtype=dtype), path)
    with pytest.raises(VolumeError, match=r"expected labels up to 2\^53 .* got 9007199254740993;"):
        load_labels(path, may_be_empty)


def test_labels_must_contain_a_label(tmp_path):
    path = write_nifti(tmp_path / "l.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(VolumeError, match=sentence("at least one label")):
        load_labels(path)


def test_missing_file(tmp_path):
    with pytest.raises(VolumeError, match=sentence("a NIfTI file, found none")):
        load_volume(tmp_path / "none.nii.gz")


def test_other_file_type(tmp_path):
    (tmp_path / "v.png").write_text("not looked at", encoding="utf-8")
    with pytest.raises(VolumeError, match=sentence("another file type")):
        load_volume(tmp_path / "v.png")


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_not_a_nifti(tmp_path, name):
    (tmp_path / name).write_bytes(b"certainly not an image " * 40)
    with pytest.raises(VolumeError, match=sentence("unreadable header")):
        load_volume(tmp_path / name)


def test_plain_file_named_gz(tmp_path, image):
    write_nifti(tmp_path / "v.nii", image).rename(tmp_path / "v.nii.gz")
    with pytest.raises(VolumeError, match=sentence("unreadable header")):
        load_volume(tmp_path / "v.nii.gz")


@pytest.mark.parametrize(("name", "kept"), [("v.nii", 500), ("v.nii.gz", 500), ("v.nii.gz", -4)])
def test_truncated(tmp_path, image, name, kept):
    path = write_nifti(tmp_path / name, image)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(VolumeError, match=sentence("truncated")):
        load_volume(path)


def test_damaged_inside(tmp_path, image):
    path = write_nifti(tmp_path / "v.nii", image)
    stored = bytearray(gzip.compress(path.read_bytes(), compresslevel=0))
    stored[-100] ^= 1  # only the checksum at the end of the file can tell
    (tmp_path / "v.nii.gz").write_bytes(stored)
    with pytest.raises(VolumeError, match=sentence("damaged or truncated")):
        load_volume(tmp_path / "v.nii.gz")


def with_header(tmp_path, image, **fields):
    """A stored image whose raw header fields are overwritten."""
    path = write_nifti(tmp_path / "v.nii", image)
    stored = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(stored[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    stored[:348] = header.binaryblock
    path.write_bytes(stored)
    return path


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, "truncated or absurd"),
        ({"dim": [3, 5, 6, 0, 1, 1, 1, 1]}, "3-D volume"),
        ({"dim": [3, 5, -6, 7, 1, 1, 1, 1]}, "3-D volume"),
        ({"dim": [9, 5, 6, 7, 1, 1, 1, 1]}, "unreadable header"),
        ({"datatype": 7}, "unreadable header"),
        ({"vox_offset": 1e9}, "unreadable header"),
        ({"magic": b"xxx"}, "unreadable header"),
    ],
)
def test_impossible_header(tmp_path, image, fields, match):
    with pytest.raises(VolumeError, match=sentence(match)):
        load_volume(with_header(tmp_path, image, **fields))


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 7, 2), (5, 6, 7, 1, 3)])
def test_other_than_three_dimensions(tmp_path, shape):
    path = write_nifti(tmp_path / "v.nii.gz", np.ones(shape, np.float32))
    with pytest.raises(VolumeError, match=sentence("a 3-D volume")):
        load_volume(path)


def test_single_slice(tmp_path, image):
    path = write_nifti(tmp_path / "v.nii.gz", image[:, :, :1])
    with pytest.raises(VolumeError, match=sentence("at least 4 voxels on every axis")):
        load_volume(path)


def test_colour(tmp_path):
    rgb = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(VolumeError, match=sentence("colour")):
        load_volume(write_nifti(tmp_path / "v.nii.gz", rgb))


def test_complex(tmp_path, image):
    with pytest.raises(VolumeError, match=sentence("complex")):
        load_volume(write_nifti(tmp_path / "v.nii.gz", image.astype(np.complex64)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, image, value):
    image[1, 2, 3] = value
    with pytest.raises(VolumeError, match=sentence("1 voxels of NaN or Inf")):
        load_volume(write_nifti(tmp_path / "v.nii.gz", image))


def test_constant(tmp_path):
    path = write_nifti(tmp_path / "v.nii.gz", np.full(SHAPE, 3, np.int16))
    with pytest.raises(VolumeError, match=sentence("constant 3")):
        load_volume(path)


def with_sform(tmp_path, image, affine):
    """A stored image with any sform; nibabel refuses to write some of these itself."""
    fields = {f"srow_{axis}": affine[row] for row, axis in enumerate("xyz")}
    return with_header(tmp_path, image, sform_code=1, qform_code=0, **fields)


def test_singular_affine(tmp_path, image):
    path = with_sform(tmp_path, image, np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(VolumeError, match=sentence("singular")):
        load_volume(path)


def test_parallel_axes(tmp_path, image):
    affine = np.eye(4)
    affine[:3, 1] = affine[:3, 0]
    with pytest.raises(VolumeError, match=sentence("singular")):
        load_volume(with_sform(tmp_path, image, affine))


def test_affine_that_is_not_finite(tmp_path, image):
    with pytest.raises(VolumeError, match=sentence("finite affine")):
        load_volume(with_sform(tmp_path, image, np.full((4, 4), np.nan)))


def test_sheared_affine(tmp_path, image):
    affine = np.eye(4)
    affine[0, 1] = 0.01
    with pytest.raises(VolumeError, match=sentence("sheared")):
        load_volume(with_sform(tmp_path, image, affine))


def test_rounded_affine_is_no_shear(tmp_path, image):
    affine = affine_of("oblique", (0.9, 0.9, 3.3)).round(4)
    assert load_volume(with_sform(tmp_path, image, affine)).grid.shape == SHAPE


def test_volumes_made_in_memory_are_checked_too(image):
    with pytest.raises(VolumeError, match=sentence("its grid's shape")):
        Volume(image, Grid((5, 6, 8), np.eye(4)))
    with pytest.raises(VolumeError, match=sentence("constant")):
        check_image(Volume(np.ones(SHAPE, np.float32), Grid(SHAPE, np.eye(4))))


def test_labels_of_another_grid(image):
    volume = Volume(image, Grid(SHAPE, np.eye(4)), "t1.nii")
    labels = Volume(image.astype(np.int16), Grid(SHAPE, affine_of("LAS")), "labels.nii")
    with pytest.raises(VolumeError, match=sentence(r"grid of t1.nii \(5, 6, 7\), got another aff")):
        check_same_grid(volume, labels)

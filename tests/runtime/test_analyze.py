"""Analyze by nibabel and by SimpleITK, in any orientation, and NIfTI's pairs."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt.errors import VolumeError
from paramorph_rt.images.volume import load_grid, load_labels, load_volume, nifti_name

from .phantoms import centred_grid, head, head_labels, volume_of

SPACING = (1.0, 1.5, 2.0)


@pytest.fixture
def image(tmp_path):
    """Voxels of three different sides, as Analyze by nibabel, which stores no orientation."""
    data = (100 * volume_of(head, centred_grid("LAS", (20, 24, 18), SPACING)).data).astype(np.int16)
    analyze = nib.AnalyzeImage(data, None)
    analyze.header.set_zooms(SPACING)
    analyze.to_filename(tmp_path / "S01.hdr")
    return tmp_path / "S01.hdr", data


@pytest.mark.parametrize("code", ["LAS", "RAS", "RPI", "PSR", "AIL"])
def test_voxels_lie_where_the_orientation_says(image, code):
    path, data = image
    volume = load_volume(path, code)
    np.testing.assert_array_equal(volume.data, data)
    assert volume.grid.orientation == code
    np.testing.assert_allclose(volume.grid.spacing, SPACING)
    centre = (np.array(data.shape) - 1) / 2
    np.testing.assert_allclose(volume.grid.world(centre), 0, atol=1e-9)
    assert load_grid(path.with_suffix(".img"), code).matches(volume.grid)
    # The truth is nibabel's: the same voxels, turned to RAS.
    turned = nib.orientations.apply_orientation(data, nib.orientations.axcodes2ornt(code))
    canonical = nib.as_closest_canonical(nib.Nifti1Image(volume.data, volume.grid.affine))
    np.testing.assert_array_equal(canonical.get_fdata(), turned)


def test_without_an_orientation_it_is_refused_in_one_sentence(image):
    with pytest.raises(VolumeError, match=r"S01.hdr: .* got Analyze, which cannot; pass --analyze"):
        load_volume(image[0])
    for code in ("LLS", "XYZ", "LA", "las", ""):
        with pytest.raises(VolumeError, match=f"expected three letters, .* got {code}; name"):
            load_volume(image[0], code)


def test_what_itk_writes_and_either_file_gzipped(image, tmp_path):
    path, data = image
    packed = tmp_path / "packed"
    packed.mkdir()
    # LONI's LBPA40 has a header beside gzipped voxels.
    (packed / "S01.hdr").write_bytes(path.read_bytes())
    (packed / "S01.img.gz").write_bytes(gzip.compress(path.with_suffix(".img").read_bytes()))
    for name in ("S01.hdr", "S01.img.gz"):
        np.testing.assert_array_equal(load_volume(packed / name, "LAS").data, data)
    written = sitk.GetImageFromArray(data.T)
    written.SetSpacing(SPACING)
    sitk.WriteImage(written, tmp_path / "itk.img")  # as a pair of NIfTI
    found = load_volume(tmp_path / "itk.hdr")
    np.testing.assert_array_equal(found.data, data)
    assert found.grid.orientation == "LPS"


def test_labels_keep_their_integers(tmp_path):
    labels = volume_of(head_labels, centred_grid("LAS", (20, 24, 18)))
    nib.AnalyzeImage(labels.data.astype(np.uint8), None).to_filename(tmp_path / "labels.hdr")
    found = load_labels(tmp_path / "labels.img", orientation="LAS")
    assert found.data.dtype == np.uint8
    np.testing.assert_array_equal(found.data, labels.data)


def test_scale_of_spm_holds(image):
    path, data = image
    header = bytearray(path.read_bytes())
    header[112:116] = np.float32(0.5).tobytes()  # funused1
    path.write_bytes(header)
    np.testing.assert_allclose(load_volume(path, "LAS").data, 0.5 * data)


def test_nifti_pair_says_itself_where_it_lies(image, tmp_path):
    _, data = image
    affine = np.diag([-1.0, 1.5, 2.0, 1.0])
    affine[:3, 3] = 4, 5, 6
    nib.Nifti1Pair(data, affine).to_filename(tmp_path / "pair.img")
    for code in (None, "RAS"):
        volume = load_volume(tmp_path / "pair.hdr", code)
        np.testing.assert_allclose(volume.grid.affine, affine, atol=1e-5)
        np.testing.assert_array_equal(volume.data, data)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda p: p.with_suffix(".img").unlink(), "found no S01.img; check the path"),
        (lambda p: p.unlink(), "found no S01.hdr; check the path"),
        (lambda p: p.with_suffix(".img").write_bytes(b"short"), "S01.img: .* got 5: the file is"),
        (lambda p: p.write_bytes(b"short"), "S01.hdr: expected a header of Analyze or NIfTI"),
        (lambda p: p.write_bytes(b""), "S01.hdr: expected a header of Analyze or NIfTI"),
    ],
)
def test_what_is_missing_or_damaged_is_one_sentence(image, spoil, match):
    path, _ = image
    spoil(path)
    with pytest.raises(VolumeError, match=match):
        load_volume(path, "LAS")


def test_4d_analyze_is_refused(tmp_path):
    series = nib.AnalyzeImage(np.ones((5, 6, 7, 2), np.int16), None)
    series.to_filename(tmp_path / "series.hdr")
    with pytest.raises(VolumeError, match=r"got shape \(5, 6, 7, 2\); split the series first"):
        load_volume(tmp_path / "series.hdr", "LAS")


def test_results_are_nifti():
    assert nifti_name("S01.hdr") == "S01.nii.gz"
    assert nifti_name("S01.img.gz") == "S01.nii.gz"

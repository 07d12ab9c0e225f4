from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt.errors import VolumeError
from paramorph_rt.field import DisplacementField
from paramorph_rt.spaces import Grid
from paramorph_rt.transforms.itk import (
    read_affine,
    read_displacement,
    write_affine,
    write_displacement,
)

from .phantoms import affine_of, world_points, write_nifti


@pytest.fixture(params=["RAS", "LAS", "LPS", "oblique"])
def field(request) -> DisplacementField:
    grid = Grid((5, 6, 7), affine_of(request.param, (1.0, 1.5, 3.0), (10.0, -20.0, 30.0)))
    vectors = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    return DisplacementField(grid, vectors)


def test_itk_moves_points_as_the_field_does(tmp_path, field):
    write_displacement(tmp_path / "d.nii.gz", field)
    image = sitk.ReadImage(tmp_path / "d.nii.gz", sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(image)
    for index in [(1, 2, 3), (3, 4, 5)]:
        point = world_points(field.grid)[index]
        moved = np.array(transform.TransformPoint((point * [-1, -1, 1]).tolist()))
        np.testing.assert_allclose(moved * [-1, -1, 1], point + field.vectors_mm[index], atol=1e-4)


def test_field_file_is_what_itk_itself_writes(tmp_path, field):
    write_displacement(tmp_path / "ours.nii.gz", field)
    sitk.WriteImage(sitk.ReadImage(tmp_path / "ours.nii.gz"), tmp_path / "itk.nii.gz")
    ours, itk = nib.load(tmp_path / "ours.nii.gz"), nib.load(tmp_path / "itk.nii.gz")
    assert ours.shape == itk.shape == (5, 6, 7, 1, 3)
    assert ours.header["intent_code"] == itk.header["intent_code"] == 1007
    assert ours.get_data_dtype() == itk.get_data_dtype() == np.float32
    np.testing.assert_array_equal(ours.dataobj, itk.dataobj)
    np.testing.assert_allclose(ours.affine, itk.affine, atol=1e-5)


def test_field_survives_writing(tmp_path, field):
    write_displacement(tmp_path / "d.nii.gz", field)
    read = read_displacement(tmp_path / "d.nii.gz")
    np.testing.assert_array_equal(read.vectors_mm, field.vectors_mm)
    assert read.grid.matches(field.grid, 1e-4)


def test_image_is_no_field(tmp_path):
    path = write_nifti(tmp_path / "v.nii.gz", np.zeros((5, 6, 7), np.float32))
    with pytest.raises(VolumeError, match="expected an ITK displacement field"):
        read_displacement(path)


def test_affine_survives_writing_and_is_itk_text(tmp_path):
    affine = np.eye(4)
    affine[:3] += np.random.default_rng(0).normal(size=(3, 4))
    write_affine(tmp_path / "a.tfm", affine)
    text = (tmp_path / "a.tfm").read_text()
    assert text.startswith("#Insight Transform File V1.0")
    assert "AffineTransform_double_3_3" in text
    np.testing.assert_allclose(read_affine(tmp_path / "a.tfm"), affine, atol=1e-12)


def test_file_that_is_no_affine(tmp_path, field):
    (tmp_path / "a.tfm").write_text("nothing")
    with pytest.raises(VolumeError, match="expected an ITK transform"):
        read_affine(tmp_path / "a.tfm")
    sitk.WriteTransform(sitk.BSplineTransform(3), str(tmp_path / "b.tfm"))
    with pytest.raises(VolumeError, match="expected a linear transform"):
        read_affine(tmp_path / "b.tfm")

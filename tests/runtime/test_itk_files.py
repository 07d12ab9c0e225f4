from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt.errors import VolumeError
from paramorph_rt.geometry.spaces import Grid, to_sitk
from paramorph_rt.images.volume import load_grid, load_labels, load_volume

from .phantoms import affine_of

SHAPE = (5, 6, 7)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)


def write_slices(folder: Path, image: sitk.Image, series: str = "1.2.3", name: str = "T1") -> None:
    """One DICOM file per slice; their names do not tell the order."""
    folder.mkdir(exist_ok=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.array(image.GetDirection()).reshape(3, 3)
    for k in range(image.GetDepth()):
        piece = image[:, :, k]
        tags = {
            "0008|0060": "MR",
            "0008|103e": name,
            "0020|000d": "1.2.3.0",
            "0020|000e": series,
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, k)))),
            "0020|0037": "\\".join(map(str, (*direction[:, 0], *direction[:, 1]))),
        }
        for tag, value in tags.items():
            piece.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}_{(3 * k) % 7}.dcm"))
        writer.Execute(piece)


@pytest.mark.parametrize("name", ["v.nrrd", "v.nhdr", "v.mha", "v.mhd"])
@pytest.mark.parametrize("orientation", ["RAS", "LAS", "oblique"])
def test_files_of_itk_lie_where_nifti_would(tmp_path, image, name, orientation):
    grid = Grid(SHAPE, affine_of(orientation, (1.0, 1.5, 3.0), (10.0, -20.0, 30.0)))
    sitk.WriteImage(to_sitk(image, grid), tmp_path / name)
    volume = load_volume(tmp_path / name)
    assert volume.data.dtype == np.float32
    np.testing.assert_array_equal(volume.data, image)
    assert volume.grid.matches(grid, 1e-4)
    assert load_grid(tmp_path / name).matches(grid, 1e-4)
    assert load_labels(tmp_path / name).data.dtype == np.int16


@pytest.mark.parametrize("orientation", ["LPS", "RPS", "oblique", "SPR"])
def test_dicom_series_lies_where_its_slices_say(tmp_path, image, orientation):
    grid = Grid(SHAPE, affine_of(orientation, (1.0, 1.5, 3.0), (10.0, -20.0, 30.0)))
    write_slices(tmp_path / "series", to_sitk(image, grid))
    volume = load_volume(tmp_path / "series")
    # Slices may come in reverse; each voxel must be at its place all the same.
    index = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1)
    world = volume.grid.world(index)
    back = np.linalg.inv(grid.affine)
    at = np.rint(world @ back[:3, :3].T + back[:3, 3]).astype(int)
    np.testing.assert_array_equal(volume.data, image[tuple(np.moveaxis(at, -1, 0))])
    np.testing.assert_allclose(grid.world(at), world, atol=1e-3)


def test_several_series_are_listed(tmp_path, image):
    for series, name in (("1.2.3", "T1 sag"), ("1.2.4", "T2 tra")):
        write_slices(tmp_path / "both", to_sitk(image, Grid(SHAPE, np.eye(4))), series, name)
    match = r'one DICOM series in the folder, got 2: "T1 sag" \(7\), "T2 tra" \(7\) slices; move'
    with pytest.raises(VolumeError, match=match):
        load_volume(tmp_path / "both")


def test_a_missing_slice_is_noticed(tmp_path, image):
    write_slices(tmp_path / "series", to_sitk(image, Grid(SHAPE, np.eye(4))))
    (tmp_path / "series/1.2.3_2.dcm").unlink()
    with pytest.raises(VolumeError, match=r"slices at even steps, got .* slices are missing"):
        load_volume(tmp_path / "series")


def test_two_images_in_one_series_are_noticed(tmp_path, image):
    for number, value in enumerate((image, image + 1)):
        write_slices(tmp_path / str(number), to_sitk(value, Grid(SHAPE, np.eye(4))))
    for file in (tmp_path / "1").iterdir():
        file.rename(tmp_path / "0" / f"again_{file.name}")
    with pytest.raises(VolumeError, match="several images share the series"):
        load_volume(tmp_path / "0")


def test_folder_without_a_series(tmp_path, capfd):
    with pytest.raises(VolumeError, match=r"expected a folder with a DICOM series, got none"):
        load_volume(tmp_path)
    assert capfd.readouterr().err == ""  # ITK would warn as well


@pytest.mark.parametrize("name", ["v.nrrd", "v.mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_files_are_refused(tmp_path, image, name, compressed):
    path = tmp_path / name
    sitk.WriteImage(to_sitk(image, Grid(SHAPE, np.eye(4))), path, compressed)
    path.write_bytes(path.read_bytes()[:-100])
    match = r"^v\.\w+: expected a complete image, got damaged or truncated data \([^\n]*\.$"
    with pytest.raises(VolumeError, match=match):
        load_volume(path)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda i: sitk.GetImageFromArray(np.zeros((4, 5, 6, 3)), isVector=True), "vector of 64-b"),
        (lambda i: sitk.GetImageFromArray(np.zeros((5, 6))), "expected a 3-D volume"),
        (lambda i: sitk.GetImageFromArray(np.ones((5, 6, 7))), "constant 1"),
        (lambda i: sitk.GetImageFromArray(np.full((5, 6, 7), np.nan)), "210 voxels of NaN"),
    ],
)
def test_what_cannot_be_registered_is_refused(tmp_path, spoil, match):
    sitk.WriteImage(spoil(None), tmp_path / "v.mha")
    with pytest.raises(VolumeError, match=match):
        load_volume(tmp_path / "v.mha")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(VolumeError, match=r"v.mha: expected an image file, found none; check"):
        load_volume(tmp_path / "v.mha")
    (tmp_path / "v.nrrd").write_text("text", encoding="utf-8")
    with pytest.raises(VolumeError, match="expected an image that ITK reads, got an unreadable"):
        load_volume(tmp_path / "v.nrrd")

"""The metrics of real brains, cut to anisotropic voxels, against other people's libraries."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from medpy.metric.binary import assd as medpy_assd
from medpy.metric.binary import dc as medpy_dice
from skimage.metrics import mean_squared_error, structural_similarity

from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, load_labels, load_volume
from paramorph_rt.metrics.deformation import digital_diffeomorphism
from paramorph_rt.metrics.summary import BRIGHT_PERCENTILE, compare_images, compare_labels
from paramorph_rt.steps.foreground import foreground_threshold

from .test_metrics import monai_hd95, monai_nsd

# The middle of the brain, of every second slice: voxels of 1 × 1 × 2 mm.
CUT = (slice(40, 110), slice(60, 150), slice(50, 120, 2))
HIPPOCAMPUS, THALAMUS, VENTRICLE = 48, 60, 52
LABELS = (HIPPOCAMPUS, THALAMUS, VENTRICLE)


def cut(volume: Volume) -> Volume:
    affine = volume.grid.affine @ np.diag([1.0, 1, 2, 1])
    affine[:3, 3] = volume.grid.affine[:3] @ (*(s.start for s in CUT), 1)
    data = volume.data[CUT]
    return Volume(data, Grid(data.shape, affine, volume.grid.world_code), volume.name)


@pytest.fixture(scope="module")
def label_maps(brains) -> tuple[Volume, Volume, np.ndarray]:
    """Fixed, moving, and moving on the fixed grid."""
    fixed = cut(load_labels(brains / "1004_labels.nii.gz"))
    moving = load_labels(brains / "1003_labels.nii.gz")
    keep = np.isin(moving.data, LABELS) * moving.data
    return fixed, moving, resample_to_grid(Volume(keep, moving.grid), fixed.grid, None, "nearest")


@pytest.fixture(scope="module")
def images(brains) -> tuple[Volume, np.ndarray]:
    """Fixed, and moving on the fixed grid."""
    fixed = cut(load_volume(brains / "1004_t1.nii.gz"))
    moving = load_volume(brains / "1003_t1.nii.gz")
    return fixed, resample_to_grid(moving, fixed.grid, smooth=False)


def test_labels(label_maps):
    fixed, moving, warped = label_maps
    spacing = fixed.grid.spacing
    np.testing.assert_allclose(spacing, (1, 1, 2), rtol=1e-5)
    table = compare_labels(fixed, moving, {"after": warped})
    for label in LABELS:
        found = {key: table[key]["after"]["labels"][str(label)] for key in table}
        masks = warped == label, fixed.data == label
        assert all(mask.any() for mask in masks)
        assert found["dice"] == pytest.approx(medpy_dice(*masks))
        assert found["assd_mm"] == pytest.approx(medpy_assd(*masks, voxelspacing=spacing), rel=1e-5)
        assert found["hd95_mm"] == pytest.approx(monai_hd95(*masks, spacing), rel=1e-5)
        assert found["nsd"] == pytest.approx(monai_nsd(*masks, spacing, 1.0), abs=1e-6)
        shape = sitk.LabelShapeStatisticsImageFilter()
        volumes = []
        for mask, grid in ((masks[0], fixed.grid), (moving.data == label, moving.grid)):
            image = sitk.GetImageFromArray(mask.T.astype(np.uint8))
            image.SetSpacing(grid.spacing.tolist())
            shape.Execute(image)
            volumes.append(shape.GetPhysicalSize(1))
        assert found["volume_mm3"] == pytest.approx(volumes[0], rel=1e-5)
        change = 100 * (volumes[0] / volumes[1] - 1)
        assert found["volume_change_percent"] == pytest.approx(change, rel=1e-4)


def scaled(image: np.ndarray) -> np.ndarray:
    """As the document says: up to a percentile of what is brighter than the background."""
    low = image.min()
    high = np.percentile(image[image > low], BRIGHT_PERCENTILE)
    return np.clip((image - low) / (high - low), 0, 1)


def test_images(images):
    fixed, warped = images
    found = compare_images(fixed, {"after": warped})
    inner = (slice(3, -3),) * 3  # scikit-image invents what is beyond the edge
    pair = [scaled(data.astype(np.float64)) for data in (fixed.data, warped)]
    mask = fixed.data > foreground_threshold(fixed.data)
    assert 0.5 < mask.mean() < 1
    _, everywhere = structural_similarity(*pair, data_range=1.0, full=True)
    expected = everywhere[inner][mask[inner]].mean()
    assert found["ssim"]["after"] == pytest.approx(expected, abs=1e-5)
    expected = mean_squared_error(*(data[mask] for data in pair))
    assert found["mse"]["after"] == pytest.approx(expected, rel=1e-5)
    expected = np.corrcoef(fixed.data[mask], warped[mask])[0, 1]
    assert found["ncc"]["after"] == pytest.approx(expected, abs=1e-5)


def test_digital_diffeomorphism(images):
    core = pytest.importorskip(
        "digital_diffeomorphism.core",
        reason="needs pip install --no-deps digital-diffeomorphism; it asks for NumPy 1",
    )
    fixed, warped = images
    demons = sitk.DemonsRegistrationFilter()
    demons.SetNumberOfIterations(8)
    demons.SetStandardDeviations(0.6)  # little, so that some places fold
    as_image = [sitk.GetImageFromArray(data.T.astype(np.float32)) for data in (fixed.data, warped)]
    vectors_vox = sitk.GetArrayFromImage(demons.Execute(*as_image)).transpose(2, 1, 0, 3)
    vectors_mm = vectors_vox @ fixed.grid.affine[:3, :3].T
    field = DisplacementField(fixed.grid, vectors_mm.astype(np.float32))
    inner = np.zeros(field.grid.shape, np.float32)
    inner[1:-1, 1:-1, 1:-1] = 1  # beyond the edge the package invents a displacement
    expected = core.ndv(vectors_vox.astype(np.float32), mask=inner, is_disp=True)[1]
    found = digital_diffeomorphism(field).volume_percent
    assert found > 0
    assert found == pytest.approx(expected, rel=1e-3)

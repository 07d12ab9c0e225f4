from __future__ import annotations

import numpy as np
import pytest
from medpy.metric.binary import assd as medpy_assd
from medpy.metric.binary import dc as medpy_dice
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import find_objects

from paramorph_rt.field import DisplacementField
from paramorph_rt.metrics.deformation import nonpositive_jacobian_percent, sd_log_jacobian
from paramorph_rt.metrics.overlap import dice, mean_over, present_labels
from paramorph_rt.metrics.similarity import ncc
from paramorph_rt.metrics.summary import compare_images, compare_labels
from paramorph_rt.metrics.surface import surface_distances
from paramorph_rt.preprocess import resample_to_grid
from paramorph_rt.spaces import Grid
from paramorph_rt.volume import Volume, load_labels

from .phantoms import centred_grid, head, head_labels, volume_of

SPACING = np.array([1.0, 1.5, 3.0])


def shifted_pair() -> tuple[np.ndarray, np.ndarray]:
    """Label maps that overlap in part; label 2 touches the image's edge."""
    labels = head_labels(np.stack(np.meshgrid(*[np.arange(-20, 16)] * 3, indexing="ij"), axis=-1))
    return labels[:, :30, 2:34], np.roll(labels, (2, -1, 1), axis=(0, 1, 2))[:, :30, 2:34]


def test_half_overlap():
    fixed, warped = np.zeros((2, 5, 6, 7), np.uint8)
    fixed[1:3] = 4
    warped[2:4] = 4
    assert dice(fixed, warped) == {4: 0.5}


def test_label_absent_from_one_map_scores_zero_and_one_absent_from_both_is_not_listed():
    fixed, warped = np.zeros((2, 5, 6, 7), np.int32)
    fixed[1], fixed[2], warped[1], warped[3] = 1, 2, 1, 70000
    assert dice(fixed, warped) == {1: 1.0, 2: 0.0, 70000: 0.0}


def test_dice_agrees_with_medpy():
    fixed, warped = shifted_pair()
    for label, value in dice(fixed, warped).items():
        assert value == pytest.approx(medpy_dice(warped == label, fixed == label))


def test_mean_skips_labels_without_a_value():
    assert mean_over({1: 0.5, 2: None, 3: 1.0}, [1, 2]) == 0.5
    assert mean_over({1: None}, [1]) is None


def monai_hd95(warped: np.ndarray, fixed: np.ndarray, spacing) -> float:
    masks = (mask[np.newaxis, np.newaxis] for mask in (warped, fixed))
    found = compute_hausdorff_distance(*masks, percentile=95, spacing=list(map(float, spacing)))
    return found.item()


def test_assd_agrees_with_medpy_and_hd95_with_monai():
    fixed, warped = shifted_pair()
    for label, found in surface_distances(fixed, warped, SPACING, [1, 2, 7]).items():
        masks = warped == label, fixed == label
        assert found.assd_mm == pytest.approx(medpy_assd(*masks, voxelspacing=SPACING), rel=1e-6)
        assert found.hd95_mm == pytest.approx(monai_hd95(*masks, SPACING), rel=1e-6)


def test_distances_of_parallel_plates_are_that_of_the_plates():
    fixed, warped = np.zeros((2, 5, 6, 12), np.uint8)
    fixed[..., 2], warped[..., 7] = 3, 3
    assert surface_distances(fixed, warped, SPACING, [3]) == {3: (15.0, 15.0)}


def test_hd95_is_that_of_the_worse_direction_and_forgives_a_twentieth():
    fixed, warped = np.zeros((2, 40, 3, 1), np.uint8)
    fixed[:, 1], warped[:20, 1] = 1, 1
    # From the longer line 20 of 40 voxels are 1 to 20 mm off; from the shorter none is.
    expected = np.percentile([0] * 20 + list(range(1, 21)), 95)
    found = surface_distances(fixed, warped, np.ones(3), [1])[1]
    assert found.hd95_mm == pytest.approx(expected, rel=1e-6)
    warped[:38, 1] = 1  # now only a twentieth is off
    assert surface_distances(fixed, warped, np.ones(3), [1])[1].hd95_mm < 0.1


def test_distances_of_equal_maps_are_zero():
    fixed, _ = shifted_pair()
    found = surface_distances(fixed, fixed, SPACING, [1, 2, 7])
    assert found == {1: (0.0, 0.0), 2: (0.0, 0.0), 7: (0.0, 0.0)}


def test_a_missing_label_has_no_distances():
    fixed, _ = shifted_pair()
    nothing = np.zeros_like(fixed)
    assert surface_distances(fixed, nothing, SPACING, [1, 9]) == {1: None, 9: None}


def test_distances_of_real_labels_agree_with_medpy_and_monai(brains):
    fixed = load_labels(brains / "1004_labels.nii.gz")
    moving = load_labels(brains / "1003_labels.nii.gz")
    warped = resample_to_grid(moving, fixed.grid, interpolation="nearest")
    labels = sorted(present_labels(fixed.data) & present_labels(warped))[::45]
    found = surface_distances(fixed.data, warped, fixed.grid.spacing, labels)
    for label in labels:
        box = find_objects(((warped == label) | (fixed.data == label)).astype(int))[0]
        masks = warped[box] == label, fixed.data[box] == label
        assert found[label].assd_mm == pytest.approx(medpy_assd(*masks), rel=1e-5)
        assert found[label].hd95_mm == pytest.approx(
            monai_hd95(*masks, fixed.grid.spacing), rel=1e-5
        )


def test_ncc_does_not_see_brightness_or_contrast():
    image = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    mask = np.ones(image.shape, bool)
    assert ncc(image, 3 * image + 100, mask) == pytest.approx(1)
    assert ncc(image, -image, mask) == pytest.approx(-1)
    assert ncc(image, np.zeros_like(image), mask) is None


def test_ncc_looks_within_the_mask_only():
    rng = np.random.default_rng(0)
    fixed, warped = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    mask = np.zeros(fixed.shape, bool)
    mask[1:3] = True
    assert ncc(fixed, warped, mask) == pytest.approx(
        np.corrcoef(fixed[1:3].ravel(), warped[1:3].ravel())[0, 1], abs=1e-6
    )


def test_folded_half_is_half_of_the_voxels():
    grid = Grid((40, 5, 6), np.eye(4))
    position = np.arange(40, dtype=np.float32)
    vectors = np.zeros((*grid.shape, 3), np.float32)
    # The map goes up to 20 and comes back down: x + u = 20 - |x - 20|.
    vectors[..., 0] = (20 - np.abs(position - 20) - position)[:, None, None]
    # One voxel more: the difference across the summit is 0, which is not positive either.
    assert nonpositive_jacobian_percent(DisplacementField(grid, vectors)) == 50.0


def stretched(factors: np.ndarray, matrix: np.ndarray) -> DisplacementField:
    """x ↦ matrix (x stretched along i by one factor per slab of ten voxels)."""
    grid = Grid((10 * len(factors), 5, 6), np.eye(4))
    lengths = np.repeat(factors, 10)
    points = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), axis=-1)
    mapped = points.astype(np.float64)
    mapped[..., 0] = (np.cumsum(lengths) - lengths)[:, None, None]
    return DisplacementField(grid, (mapped @ matrix.T - points).astype(np.float32))


def test_spread_of_log_jacobian_is_that_of_the_stretches_whatever_the_affine():
    # Half of the voxels stretch by e, half by 1 / e, but for the one between them: SD 1.
    factors = np.exp([1.0, -1.0])
    affine = np.array([[1.2, 0.3, 0], [-0.2, 0.9, 0.1], [0, 0, 1.1]])
    plain = sd_log_jacobian(stretched(factors, np.eye(3)))
    assert plain == pytest.approx(1, abs=0.06)
    assert sd_log_jacobian(stretched(factors, affine)) == pytest.approx(plain, rel=1e-4)
    assert sd_log_jacobian(stretched(np.ones(2), affine)) == pytest.approx(0, abs=1e-5)


def test_a_fold_counts_as_the_logarithm_of_a_billionth():
    # One tenth of the slabs runs backwards; the others keep their volume.
    field = stretched(np.array([1.0] * 9 + [-1.0]), np.eye(3))
    expected = np.std(np.log([1.0] * 9 + [1e-9]))
    assert sd_log_jacobian(field) == pytest.approx(expected, rel=0.02)


def test_summary_counts_a_lost_label_as_zero_overlap_without_a_distance():
    grid = centred_grid("RAS", (46, 52, 40))
    fixed = volume_of(head_labels, grid)
    lost = Volume(np.where(fixed.data == 7, 0, fixed.data), grid)
    extra = Volume(np.where(fixed.data == 1, 9, fixed.data), grid)
    table = compare_labels(fixed, fixed, {"before": fixed.data, "after": lost.data})
    assert table["dice"]["before"]["mean"] == 1.0
    assert table["dice"]["after"]["labels"]["7"] == 0.0
    assert table["assd_mm"]["after"]["labels"]["7"] is None
    assert table["hd95_mm"]["after"]["labels"]["7"] is None
    assert table["assd_mm"]["after"]["mean"] == table["hd95_mm"]["after"]["mean"] == 0.0
    table = compare_labels(fixed, extra, {"after": extra.data})
    assert set(table["dice"]["after"]["labels"]) == {"1", "2", "7", "9"}
    assert table["dice"]["after"]["mean"] == 1.0  # over 2 and 7, which both maps have


def test_summary_of_images():
    fixed = volume_of(head, centred_grid("RAS", (46, 52, 40)))
    table = compare_images(fixed, {"before": fixed.data * 0, "after": fixed.data})
    assert table["before"] is None
    assert table["after"] == pytest.approx(1)

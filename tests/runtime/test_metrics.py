from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from medpy.metric.binary import assd as medpy_assd
from medpy.metric.binary import dc as medpy_dice
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import correlate1d, find_objects
from scipy.stats import binned_statistic
from skimage.metrics import mean_squared_error, structural_similarity

from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, load_labels
from paramorph_rt.metrics.definitions import METRICS, definitions_of
from paramorph_rt.metrics.deformation import (
    digital_diffeomorphism,
    nonpositive_jacobian_percent,
    regularity,
    sd_log_jacobian,
    sd_log_jacobian_l2r,
)
from paramorph_rt.metrics.overlap import dice, label_counts, mean_dice, mean_over, present_labels
from paramorph_rt.metrics.similarity import correlation_ratio, mse, ncc, ssim, within
from paramorph_rt.metrics.summary import compare_images, compare_labels
from paramorph_rt.metrics.surface import surface_distances

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


def test_mean_dice_is_of_the_labels_in_common_and_0_for_one_that_the_warp_lost():
    fixed, moving = np.array([1, 1, 2, 3]), np.array([1, 2, 2, 4])
    assert mean_dice(fixed, np.array([1, 1, 0, 3]), moving) == 0.5
    assert mean_dice(fixed, fixed, np.array([5])) is None


def test_counts_do_not_depend_on_how_large_or_negative_labels_are():
    small = np.array([0, 3, 3, 1], np.int16)
    assert label_counts(small) == {1: 1, 3: 2}
    assert label_counts(np.array([0, 2**31 - 1, 3, 3], np.int32)) == {3: 2, 2**31 - 1: 1}
    assert label_counts(np.array([-2, 0, 3], np.int16)) == {-2: 1, 3: 1}
    assert label_counts(np.zeros(3, np.uint8)) == {}


def test_mean_skips_labels_without_a_value():
    assert mean_over({1: 0.5, 2: None, 3: 1.0}, [1, 2]) == 0.5
    assert mean_over({1: None}, [1]) is None


def monai_hd95(warped: np.ndarray, fixed: np.ndarray, spacing) -> float:
    masks = (mask[np.newaxis, np.newaxis] for mask in (warped, fixed))
    found = compute_hausdorff_distance(*masks, percentile=95, spacing=list(map(float, spacing)))
    return found.item()


def monai_nsd(warped: np.ndarray, fixed: np.ndarray, spacing, tolerance_mm: float) -> float:
    masks = (torch.from_numpy(mask[np.newaxis, np.newaxis]) for mask in (warped, fixed))
    # MONAI has no allowance for rounded spacings; half a micrometre stays within ours.
    tolerance = [tolerance_mm + 5e-4]
    return compute_surface_dice(
        *masks, class_thresholds=tolerance, include_background=True, spacing=list(spacing)
    ).item()


def test_assd_agrees_with_medpy_and_hd95_with_monai():
    fixed, warped = shifted_pair()
    for label, found in surface_distances(fixed, warped, SPACING, [1, 2, 7]).items():
        masks = warped == label, fixed == label
        assert found.assd_mm == pytest.approx(medpy_assd(*masks, voxelspacing=SPACING), rel=1e-6)
        assert found.hd95_mm == pytest.approx(monai_hd95(*masks, SPACING), rel=1e-6)


@pytest.mark.parametrize("tolerance_mm", [0.0, 1.0, 1.5, 3.2])
def test_nsd_agrees_with_monai(tolerance_mm):
    fixed, warped = shifted_pair()
    found = surface_distances(fixed, warped, SPACING, [1, 2, 7], tolerance_mm)
    for label in (1, 2, 7):
        expected = monai_nsd(warped == label, fixed == label, SPACING, tolerance_mm)
        assert found[label].nsd == pytest.approx(expected, abs=1e-6)


def test_distances_of_parallel_plates_are_that_of_the_plates():
    fixed, warped = np.zeros((2, 5, 6, 12), np.uint8)
    fixed[..., 2], warped[..., 7] = 3, 3
    assert surface_distances(fixed, warped, SPACING, [3]) == {3: (15.0, 15.0, 0.0)}
    # A spacing that a header rounded does not decide.
    for spacing in (SPACING, SPACING * (1 + 1e-7), SPACING * (1 - 1e-7)):
        assert surface_distances(fixed, warped, spacing, [3], tolerance_mm=15.0)[3].nsd == 1.0


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
    assert found == dict.fromkeys([1, 2, 7], (0.0, 0.0, 1.0))


def test_a_missing_label_has_no_distances():
    fixed, _ = shifted_pair()
    nothing = np.zeros_like(fixed)
    assert surface_distances(fixed, nothing, SPACING, [1, 9]) == {1: None, 9: None}
    assert surface_distances(nothing, nothing, SPACING, [1]) == {1: None}


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
        spacing = fixed.grid.spacing
        assert found[label].hd95_mm == pytest.approx(monai_hd95(*masks, spacing), rel=1e-5)
        assert found[label].nsd == pytest.approx(monai_nsd(*masks, spacing, 1.0), abs=1e-6)


def test_ncc_does_not_see_brightness_or_contrast():
    image = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32)
    image = image.ravel()
    assert ncc(image, 3 * image + 100) == pytest.approx(1)
    assert ncc(image, -image) == pytest.approx(-1)
    assert ncc(image, np.zeros_like(image)) is None


def test_ncc_looks_within_the_mask_only():
    rng = np.random.default_rng(0)
    fixed, warped = rng.normal(size=(2, 5, 6, 7)).astype(np.float32)
    mask = np.zeros(fixed.shape, bool)
    mask[1:3] = True
    assert ncc(within(mask, fixed), within(mask, warped)) == pytest.approx(
        np.corrcoef(fixed[1:3].ravel(), warped[1:3].ravel())[0, 1], abs=1e-6
    )


def noisy_pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two images in [0, 1] that are alike in part, and a mask that reaches the image's edge."""
    rng = np.random.default_rng(0)
    fixed = volume_of(head, centred_grid("RAS", (23, 26, 31), (2, 2, 2))).data
    fixed = (fixed / fixed.max()).astype(np.float32)
    warped = np.roll(fixed, 1, axis=1) + 0.1 * rng.normal(size=fixed.shape).astype(np.float32)
    mask = rng.random(fixed.shape) < 0.5
    return fixed, np.clip(warped, 0, 1), mask


def test_correlation_ratio_agrees_with_the_means_of_scipys_bins():
    rng = np.random.default_rng(5)
    given = rng.normal(size=4000).astype(np.float32)
    values = (np.sin(2 * given) + rng.normal(0, 0.3, 4000)).astype(np.float32)
    limits = np.quantile(given, np.linspace(0, 1, 9))
    means = binned_statistic(given, values, "mean", limits)
    explained = np.var(means.statistic[means.binnumber.clip(1, 8) - 1]) / np.var(values)
    assert correlation_ratio(values, given, 8) == pytest.approx(explained, abs=1e-3)
    assert correlation_ratio(np.ones(50, np.float32), given[:50]) is None
    assert correlation_ratio(values, np.ones_like(given)) == pytest.approx(0, abs=1e-6)


def test_ssim_agrees_with_scikit_image():
    fixed, warped, mask = noisy_pair()
    for data_range in (1.0, 255.0):
        pair = (fixed * data_range).astype(np.float64), (warped * data_range).astype(np.float64)
        _, everywhere = structural_similarity(*pair, data_range=data_range, full=True)
        inner = (slice(3, -3),) * 3  # scikit-image invents what is beyond the edge
        expected = everywhere[inner][mask[inner]].mean()
        assert ssim(*pair, mask, data_range) == pytest.approx(expected, abs=1e-9)
    assert ssim(fixed, fixed, mask) == pytest.approx(1)
    assert ssim(fixed, warped, np.zeros_like(mask)) is None
    assert ssim(fixed[:6], warped[:6], mask[:6]) is None  # no whole window


def test_mse_agrees_with_scikit_image():
    fixed, warped, mask = noisy_pair()
    expected = mean_squared_error(fixed[mask], warped[mask])
    assert mse(within(mask, fixed), within(mask, warped)) == pytest.approx(expected, rel=1e-6)


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
    stages = {"before": fixed.data * 0, "after": 3 * fixed.data + 100}
    table = compare_images(fixed, stages)
    for measure, perfect in (("ncc", 1), ("ssim", 1), ("mse", 0)):
        assert table[measure] == {"before": None, "after": pytest.approx(perfect, abs=1e-6)}
    assert set(compare_images(fixed, stages, ["mse"])) == {"mse"}
    nowhere = np.zeros(fixed.data.shape, bool)
    assert compare_images(fixed, stages, ["mse"], nowhere)["mse"]["after"] is None


def test_summary_of_a_label_that_only_the_moving_map_had():
    grid = centred_grid("RAS", (46, 52, 40))
    fixed = volume_of(head_labels, grid)
    moving = Volume(np.where(fixed.data == 1, 9, fixed.data), grid)
    lost = np.where(moving.data == 9, 0, moving.data)
    table = compare_labels(fixed, moving, {"before": moving.data, "after": lost})
    for key, before, after in (
        *(("dice", 0.0, None), ("nsd", 0.0, None)),
        *(("assd_mm", None, None), ("hd95_mm", None, None)),
    ):
        assert table[key]["before"]["labels"]["9"] == before, key
        assert table[key]["after"]["labels"]["9"] == after, key
    assert table["volume_change_percent"]["after"]["labels"] == {
        "1": None,
        "2": 0,
        "7": 0,
        "9": -100,
    }
    assert table["volume_change_percent"]["after"]["mean"] == 0  # over 2 and 7


def test_summary_of_an_empty_warped_map_is_no_overlap_without_distances():
    fixed = volume_of(head_labels, centred_grid("RAS", (46, 52, 40)))
    table = compare_labels(fixed, fixed, {"after": np.zeros_like(fixed.data)})
    assert table["dice"]["after"] == {"mean": 0.0, "labels": {"1": 0.0, "2": 0.0, "7": 0.0}}
    assert table["nsd"]["after"]["mean"] == 0.0
    assert table["assd_mm"]["after"] == {"mean": None, "labels": {"1": None, "2": None, "7": None}}


def test_summary_without_the_original_map_counts_every_fixed_label():
    grid = centred_grid("RAS", (46, 52, 40))
    fixed = volume_of(head_labels, grid)
    warped = np.where(fixed.data == 7, 9, fixed.data)
    table = compare_labels(fixed, None, {"after": warped})
    assert table["dice"]["after"]["labels"] == {"1": 1.0, "2": 1.0, "7": 0.0, "9": 0.0}
    assert table["dice"]["after"]["mean"] == pytest.approx(2 / 3)
    assert "volume_change_percent" not in table
    assert set(table["volume_mm3"]) == {"fixed", "after"}


def test_volumes_agree_with_simpleitk_on_anisotropic_oblique_grids():
    fixed = volume_of(head_labels, centred_grid("oblique", (40, 24, 30), (1, 2, 1.5)))
    moving = volume_of(head_labels, centred_grid("LPI", (30, 50, 20), (1.4, 1, 2.2)))
    table = compare_labels(fixed, moving, {"after": fixed.data})["volume_mm3"]
    for name, volume in (("fixed", fixed), ("moving", moving), ("after", fixed)):
        image = sitk.GetImageFromArray(volume.data.T)
        image.SetSpacing(volume.grid.spacing.tolist())
        shapes = sitk.LabelShapeStatisticsImageFilter()
        shapes.Execute(image)
        for label, value in table[name]["labels"].items():
            assert value == pytest.approx(shapes.GetPhysicalSize(int(label)))


def test_distances_on_an_oblique_grid_are_those_along_its_axes():
    shape, spacing = (40, 24, 30), (1, 2, 1.5)
    straight = volume_of(head_labels, centred_grid("RAS", shape, spacing))
    oblique = Volume(straight.data, centred_grid("oblique", shape, spacing))
    warped = np.roll(straight.data, (2, 1, -1), axis=(0, 1, 2))
    found = [compare_labels(volume, None, {"after": warped}) for volume in (straight, oblique)]
    for key in ("assd_mm", "hd95_mm"):
        first, second = (table[key]["after"]["labels"] for table in found)
        assert first == pytest.approx(second, rel=1e-5)


def random_field(spread: float) -> tuple[np.ndarray, DisplacementField]:
    """Displacement in voxels of an oblique, anisotropic grid, and the field that it is."""
    vectors_vox = np.random.default_rng(0).normal(scale=spread, size=(7, 8, 9, 3))
    grid = centred_grid("oblique", (7, 8, 9), (1, 2, 3))
    vectors_mm = vectors_vox @ grid.affine[:3, :3].T
    return vectors_vox, DisplacementField(grid, vectors_mm.astype(np.float32))


def test_learn2regs_spread_is_of_shifted_determinants_without_the_border():
    # The challenge's way in voxels: constant padding, whose effect the cropping removes.
    vectors_vox, field = random_field(0.4)
    slopes = [
        correlate1d(vectors_vox, [-0.5, 0, 0.5], axis=axis, mode="constant") for axis in range(3)
    ]
    determinant = np.linalg.det(np.stack(slopes, axis=-1) + np.eye(3))[2:-2, 2:-2, 2:-2]
    expected = np.log((determinant + 3).clip(1e-9, 1e9)).std()
    assert sd_log_jacobian_l2r(field) == pytest.approx(expected, rel=1e-5)


def test_learn2regs_spread_of_a_field_that_is_all_border_is_none():
    grid = Grid((4, 9, 9), np.eye(4))
    assert sd_log_jacobian_l2r(DisplacementField(grid, np.zeros((4, 9, 9, 3), np.float32))) is None


def test_regularity_is_what_each_function_measures():
    _, field = random_field(0.4)
    volume, voxels = digital_diffeomorphism(field)
    assert regularity(field) == {
        "nonpositive_jacobian_percent": nonpositive_jacobian_percent(field),
        "sd_log_jacobian": sd_log_jacobian(field),
        "sd_log_jacobian_l2r": sd_log_jacobian_l2r(field),
        "nondiffeomorphic_volume_percent": volume,
        "nondiffeomorphic_voxels_percent": voxels,
    }


@pytest.mark.parametrize("spread", [0.1, 0.6])
def test_digital_diffeomorphism_agrees_with_the_authors_package(spread):
    core = pytest.importorskip(
        "digital_diffeomorphism.core",
        reason="needs pip install --no-deps digital-diffeomorphism; it asks for NumPy 1",
    )
    vectors_vox, field = random_field(spread)
    inner = np.zeros(field.grid.shape, np.float32)
    inner[1:-1, 1:-1, 1:-1] = 1  # beyond the edge the package invents a displacement
    expected = core.ndv(vectors_vox.astype(np.float32), mask=inner, is_disp=True)[1]
    found = digital_diffeomorphism(field)
    assert found.volume_percent == pytest.approx(expected, rel=1e-4)
    determinants = core.calc_jacdets_3d(vectors_vox + core.identity_grid_like(vectors_vox), "cpu")
    central = determinants.pop("000")
    assert central.shape == field.grid.shape
    broken = np.any([values <= 0 for values in determinants.values()], axis=0)
    assert found.voxels_percent == pytest.approx(100 * broken[inner > 0].mean())
    assert found.volume_percent > 0 or spread < 0.5


def test_a_voxel_thrown_over_its_neighbour_is_not_digitally_diffeomorphic():
    grid = Grid((9, 8, 20), np.diag([-1.0, 2, 3, 1]))  # more slices than are looked at at a time
    vectors = np.zeros((*grid.shape, 3), np.float32)
    vectors[4, 4, 10] = (1.7, 0, 0)
    field = DisplacementField(grid, vectors)
    broken = digital_diffeomorphism(field)
    assert nonpositive_jacobian_percent(field) == 0  # central differences do not see it
    # Itself and the neighbour that it passes, with those whose faces it goes through.
    assert broken.voxels_percent > 0
    assert broken.volume_percent > 0
    vectors[4, 4, 10] = (0.3, 0, 0)
    assert digital_diffeomorphism(DisplacementField(grid, vectors)) == (0, 0)


def test_a_mirror_turns_everything_inside_out_and_an_affine_nothing():
    grid = centred_grid("oblique", (9, 8, 20), (1, 2, 3))
    still = DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))
    mirror = digital_diffeomorphism(np.diag([-1.0, 1, 1, 1]) @ still)
    assert mirror == pytest.approx((100, 100), rel=1e-5)
    turned = np.array([[-1.2, 0.3, 0, 4], [-0.2, -0.9, 0.1, 5], [0, 0, 1.1, 6], [0, 0, 0, 1]])
    assert digital_diffeomorphism(turned @ still) == (0, 0)


def test_the_document_defines_every_metric_in_the_same_words():
    text = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    for key, metric in METRICS.items():
        assert f"| `{key}` | {metric.meaning.replace('|', chr(92) + '|')} |" in text
        assert metric.plainly
    assert definitions_of(["dice", "seconds"]) == {"dice": METRICS["dice"].meaning}

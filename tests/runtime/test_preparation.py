from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import affine_transform, map_coordinates

from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.errors import AlignmentError, VolumeError
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.background import background_of
from paramorph_rt.images.volume import Volume, load_volume
from paramorph_rt.steps.foreground import MaskedImage, foreground_box
from paramorph_rt.steps.intensity import normalise
from paramorph_rt.steps.preparation import network_grid_for, prepare_pair

from .phantoms import centred_grid, head, head_labels, volume_of, world_points

COLIN = Path(__file__).parents[2] / "examples/colin27/ch2bet.nii.gz"
SPEC = InputSpec(GridSpec((32, 30, 28), (2.0, 2.0, 2.5), "RAS"), IntensitySpec(0.0, 100.0))
ORIENTATIONS = ["RAS", "LAS", "LPS", "SPR", "oblique"]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
def test_resampling_agrees_with_scipy(orientation, interpolation, order):
    source = volume_of(head, centred_grid("RAS", (46, 54, 41)))
    target = centred_grid(orientation, (13, 15, 11), (0.7, 0.8, 0.9), (1.0, 2.0, 3.0))
    affine = np.eye(4)
    affine[:3] += np.random.default_rng(0).normal(scale=0.05, size=(3, 4))
    result = resample_to_grid(source, target, affine, interpolation)
    points = world_points(target) @ affine[:3, :3].T + affine[:3, 3]
    index = (points - source.grid.affine[:3, 3]) @ np.linalg.inv(source.grid.affine[:3, :3]).T
    expected = map_coordinates(source.data, np.moveaxis(index, -1, 0), order=order)
    # ITK interpolates in float64 from coordinates that it advances along a line.
    np.testing.assert_allclose(result, expected, atol=2e-3)


def test_outside_is_the_minimum_for_images_and_zero_for_labels():
    grid = centred_grid("RAS", (8, 9, 10))
    air = Volume(np.random.default_rng(0).uniform(-1000, 500, grid.shape).astype(np.float32), grid)
    far = centred_grid("RAS", (5, 6, 7), centre=(100, 0, 0))
    assert (resample_to_grid(air, far) == air.data.min()).all()
    labels = Volume(np.ones(grid.shape, np.uint8), grid)
    assert not resample_to_grid(labels, far, interpolation="nearest").any()


def test_coarser_target_is_smoothed_and_a_finer_one_is_not():
    grid = centred_grid("RAS", (40, 42, 44))
    noise = Volume(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid)
    coarse = centred_grid("RAS", (8, 9, 10), (4.0, 4.0, 4.0))
    # A mean over about 4³ voxels leaves an eighth of the noise's deviation; aliasing leaves all.
    assert resample_to_grid(noise, coarse).std() < 0.2
    assert resample_to_grid(noise, coarse, smooth=False).std() > 0.3
    np.testing.assert_allclose(resample_to_grid(noise, grid), noise.data, atol=1e-6)


def test_smoothing_follows_the_source_axis_that_is_undersampled():
    source = centred_grid("RAS", (40, 42, 44))
    i = np.arange(40) % 2  # stripes along the first axis only
    stripes = Volume(np.broadcast_to(i[:, None, None], source.shape).astype(np.float32), source)
    same_axis = centred_grid("SAR", (44, 42, 10), (1.0, 1.0, 4.0))
    other_axis = centred_grid("SAR", (10, 42, 40), (4.0, 1.0, 1.0))
    assert np.ptp(resample_to_grid(stripes, same_axis)[5:-5, 5:-5, 2:-2]) < 0.1
    assert np.ptp(resample_to_grid(stripes, other_axis)[2:-2, 5:-5, 5:-5]) > 0.9


def test_foreground_box_is_where_the_object_is():
    grid = centred_grid("RAS", (20, 22, 24))
    data = np.full(grid.shape, -1000, np.float32)
    data[3:15, 5:18, 7:9] = 100
    assert foreground_box(Volume(data, grid)) == ((3, 5, 7), (15, 18, 9))


def test_darker_ringing_of_splines_leaves_the_background_what_it_is():
    brain = load_volume(COLIN)
    cubic, linear = (
        affine_transform(brain.data, np.diag([1.1, 0.9, 1.05]), order=order) for order in (3, 1)
    )
    assert cubic.min() < 0
    assert abs(background_of(cubic)) < 0.01
    boxes = [np.array(foreground_box(Volume(data, brain.grid))) for data in (cubic, linear)]
    assert np.abs(boxes[0] - boxes[1]).max() <= 1
    assert normalise(cubic, 0, 99.8)[0, 0, 0] < 1e-4


@pytest.mark.parametrize(
    ("outside", "inside", "expected"),
    [
        (-1024, [-800, 40], -1024),
        (0, [-800, 40], -800),  # a CT that was masked with 0: half of it is darker
        (0, [-30, 900], -30),  # too much of it to be ringing
        (500, [0, 100], 0),  # a dark object before a bright background
    ],
)
def test_a_level_that_much_lies_below_is_no_background(outside, inside, expected):
    data = np.full((20, 22, 24), outside, np.float32)
    data[5:10, 5:15, 5:15], data[10:15, 5:15, 5:15] = inside
    assert background_of(data) == expected


def test_plain_min_max():
    array = np.array([[[2.0, 4.0, 6.0, 10.0]]], np.float32)
    np.testing.assert_allclose(normalise(array, 0, 100), [[[0, 0.25, 0.5, 1]]])


def test_percentiles_ignore_the_background_and_clip():
    array = np.zeros((10, 10, 20), np.float32)
    array.flat[:101] = np.arange(100, 201)
    result = normalise(array, 10, 90)  # 110 and 190
    np.testing.assert_allclose(result.flat[:101], ((np.arange(100, 201) - 110) / 80).clip(0, 1))
    assert result.flat[-1] == 0


def test_almost_binary_image_is_not_divided_by_zero():
    array = np.zeros((4, 5, 6), np.float32)
    array[1:3, 1:3, 1:3] = 7
    np.testing.assert_array_equal(normalise(array, 1, 99), array / 7)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_pair_in_any_orientation_looks_the_same_to_the_network(orientation):
    moving = volume_of(head, centred_grid("LAS", (46, 54, 41)), "moving")
    fixed = volume_of(head, centred_grid(orientation, (56, 54, 58), (0.9, 1.0, 0.8)), "fixed")
    pair = prepare_pair(MaskedImage(moving), MaskedImage(fixed), np.eye(4), SPEC)
    assert pair.grid.orientation == "RAS"
    assert pair.moving.shape == pair.fixed.shape == SPEC.grid.shape
    assert pair.moving.dtype == pair.fixed.dtype == np.float32
    assert pair.moving.flags.c_contiguous
    assert (pair.fixed.min(), pair.fixed.max()) == (0.0, 1.0)
    assert pair.spacing_growth == pytest.approx(1.0)
    # Both are the same object: they differ by interpolation only.
    assert np.abs(pair.moving - pair.fixed).mean() < 0.01


def test_fixed_larger_than_the_network_reports_its_growth():
    fixed = volume_of(head, centred_grid("RAS", (46, 54, 41), (1.5, 1.5, 1.5)), "fixed")
    fixed = Volume(fixed.data + 1000, Grid(fixed.grid.shape, fixed.grid.affine * 2), "fixed")
    pair = prepare_pair(MaskedImage(fixed), MaskedImage(fixed), np.eye(4), SPEC)
    assert pair.spacing_growth > 1
    np.testing.assert_allclose(
        pair.grid.spacing, np.array(SPEC.grid.spacing_mm) * pair.spacing_growth
    )


def test_network_grid_covers_the_foreground():
    fixed = volume_of(head, centred_grid("SPR", (46, 54, 50), centre=(30, 0, -10)))
    fixed = volume_of(lambda p: head(p - [30, 0, -10]), fixed.grid)
    grid = network_grid_for(fixed, SPEC)
    middle = grid.world((np.array(grid.shape) - 1) / 2)
    np.testing.assert_allclose(middle, [30, 0, -10], atol=2)


def test_no_overlap():
    moving = volume_of(head, centred_grid("RAS", (46, 54, 41)), "moving.nii")
    shifted = Volume(
        moving.data, centred_grid("RAS", (46, 54, 41), centre=(500, 0, 0)), "fixed.nii"
    )
    with pytest.raises(AlignmentError, match=r"moving.nii: .* lie upon fixed.nii .*--no-aff"):
        prepare_pair(MaskedImage(moving), MaskedImage(shifted), np.eye(4), SPEC)


def test_labels_stay_labels():
    labels = volume_of(head_labels, centred_grid("RAS", (46, 54, 41)))
    grid = centred_grid("oblique", (20, 24, 18), (2.0, 2.0, 2.0))
    result = resample_to_grid(labels, grid, interpolation="nearest")
    assert result.dtype == labels.data.dtype
    assert set(np.unique(result)) == {0, 1, 2, 7}


def test_network_sees_background_outside_a_mask_and_the_other_image_in_its_holes():
    fixed = volume_of(head, centred_grid("LAS", (46, 52, 40)), "fixed")
    moving = Volume(fixed.data[::-1] * 2, fixed.grid, "moving")
    points = world_points(fixed.grid)
    outside = points[..., 0] > 8  # reaches the border of the image
    hole = np.linalg.norm(points - (-4, 0, 0), axis=-1) < 6
    mask = Volume((~(outside | hole)).astype(np.uint8), fixed.grid, "mask")
    plain = prepare_pair(MaskedImage(moving), MaskedImage(fixed), np.eye(4), SPEC)
    for name in ("moving", "fixed"):
        masks = [mask if name == which else None for which in ("moving", "fixed")]
        seen = prepare_pair(*map(MaskedImage, (moving, fixed), masks), np.eye(4), SPEC)
        where = world_points(seen.grid)
        deep = np.linalg.norm(where - (-4, 0, 0), axis=-1) < 3
        np.testing.assert_array_equal(seen.moving[deep], seen.fixed[deep])
        other = "fixed" if name == "moving" else "moving"
        # One percentile of the range may move where the network grid does.
        if name == "moving":
            np.testing.assert_array_equal(getattr(seen, other), getattr(plain, other))
            np.testing.assert_allclose(seen.moving[deep], plain.fixed[deep])
        assert not getattr(seen, name)[where[..., 0] > 12].any()


def test_mask_without_foreground_is_refused():
    fixed = volume_of(head, centred_grid("RAS", (46, 52, 40)), "fixed.nii")
    corner = np.zeros(fixed.grid.shape, np.uint8)
    corner[0, 0, 0] = 1
    mask = Volume(corner, fixed.grid, "mask.nii")
    with pytest.raises(VolumeError, match=r"mask.nii: expected a mask with some of what fixed.nii"):
        prepare_pair(MaskedImage(fixed), MaskedImage(fixed, mask), np.eye(4), SPEC)

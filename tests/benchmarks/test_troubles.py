from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import center_of_mass
from scipy.spatial.transform import Rotation

from paramorph_rt.images.volume import Volume
from paramorph_rt.steps.foreground import foreground_threshold
from troubles import (
    BIAS,
    TROUBLES,
    biased,
    coarser,
    noisy,
    reoriented,
    rotated,
    same_places,
    scaled,
)

from ..runtime.phantoms import centred_grid, head, head_labels, volume_of

CENTRE = (5.0, -8.0, 3.0)


@pytest.fixture(params=["LAS", "SPR", "oblique"])
def subject(request) -> tuple[Volume, Volume]:
    grid = centred_grid(request.param, (47, 55, 44), (1.0, 1.0, 1.2), CENTRE)

    def moved(points: np.ndarray) -> np.ndarray:
        return points - CENTRE

    return volume_of(head, grid, "x", moved), volume_of(head_labels, grid, "x labels", moved)


def place_of(volume: Volume, label: int) -> np.ndarray:
    """World position of a label's centre of gravity."""
    return apply_affine(volume.grid.affine, center_of_mass(volume.data == label))


def test_rotation_turns_every_label_about_the_middle(subject):
    axis = np.array([1.0, -2.0, 0.5])
    image, labels = rotated(*subject, degrees=15, axis=axis)
    turn = Rotation.from_rotvec(np.radians(15) * axis / np.linalg.norm(axis))
    for label in (1, 2, 7):
        expected = turn.apply(place_of(subject[1], label) - CENTRE) + CENTRE
        np.testing.assert_allclose(place_of(labels, label), expected, atol=0.1)
        # Nothing is cut off at the border.
        before, after = (np.count_nonzero(v.data == label) for v in (subject[1], labels))
        assert after == pytest.approx(before, rel=0.02)
    assert image.grid is labels.grid
    assert image.data.max() > 0.9 * subject[0].data.max()


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_scaling_changes_the_volume_of_every_label(subject, factor):
    _, labels = scaled(*subject, factor=factor)
    for label in (1, 2, 7):
        before, after = (np.count_nonzero(v.data == label) for v in (subject[1], labels))
        # Nearest neighbour moves the plane between the halves by up to half a voxel.
        assert after / before == pytest.approx(factor**3, rel=0.06)
        expected = factor * (place_of(subject[1], label) - CENTRE) + CENTRE
        np.testing.assert_allclose(place_of(labels, label), expected, atol=0.3)


def test_coarser_voxels_show_the_same_places(subject):
    image, labels = coarser(*subject, spacing_mm=2.0)
    np.testing.assert_allclose(image.grid.spacing, 2)
    for label in (1, 2, 7):
        # Nearest neighbour moves the plane between the halves by up to half a voxel.
        np.testing.assert_allclose(place_of(labels, label), place_of(subject[1], label), atol=0.5)


@pytest.mark.parametrize("orientation", ["PIR", "RSP", "LAS"])
def test_another_orientation_shows_the_same_voxels_in_the_same_places(subject, orientation):
    image, labels = reoriented(*subject, orientation=orientation)
    assert image.grid.orientation == orientation
    assert same_places(image.grid, subject[0].grid)
    assert np.array_equal(np.sort(image.data, axis=None), np.sort(subject[0].data, axis=None))
    for label in (1, 2, 7):
        np.testing.assert_allclose(place_of(labels, label), place_of(subject[1], label), atol=1e-9)


def test_bias_scales_within_its_bounds_and_leaves_labels_alone(subject):
    image, labels = biased(*subject)
    ratio = image.data / subject[0].data
    assert ratio.min() == pytest.approx(1 - BIAS, abs=1e-3)
    assert ratio.max() == pytest.approx(1 + BIAS, abs=1e-3)
    assert labels is subject[1]


def test_noise_is_the_same_every_time_and_leaves_the_background_alone(subject):
    first, second = noisy(*subject)[0].data, noisy(*subject)[0].data
    assert np.array_equal(first, second)
    original = subject[0].data
    outside = original <= foreground_threshold(original)
    assert np.array_equal(first[outside], original[outside])
    bright = original > 0.5 * original.max()
    expected = 0.05 * np.percentile(original, 99.5)
    assert np.std((first - original)[bright]) == pytest.approx(expected, rel=0.05)


def test_what_moves_does_not_stay_in_its_places(subject):
    for case, trouble in TROUBLES.items():
        stays = case.startswith(("stored as", "bias", "noise"))
        assert same_places(trouble(*subject)[0].grid, subject[0].grid) == stays, case

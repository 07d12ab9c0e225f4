from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from paramorph_rt.images.volume import Volume
from paramorph_rt.steps.pose import BINS, MutualInformation, find_pose

from .phantoms import centred_grid, head, volume_of, world_points


def test_information_agrees_with_its_definition():
    """The sum of p(f, m) log(p(f, m) / p(f) p(m)), sampled by scipy and counted by NumPy."""
    fixed = volume_of(head, centred_grid("LAS", (23, 25, 21), (2, 2, 2)), "fixed")
    moving = volume_of(head, centred_grid("oblique", (30, 31, 28), (1.5, 1.5, 1.5)), "moving")
    affine = nib.affines.from_matvec(np.eye(3) * 1.1, (9.0, -4.0, 3.0))
    points = fixed.data > 10
    index = nib.affines.apply_affine(
        np.linalg.inv(moving.grid.affine) @ affine, world_points(fixed.grid)[points]
    ).T
    inside = ((index >= -0.5) & (index < np.array(moving.data.shape)[:, None] - 0.5)).all(axis=0)
    sampled = map_coordinates(moving.data, index[:, inside], order=0, mode="nearest")

    def edges(data):
        return np.r_[
            np.linspace(data.min(), np.percentile(data[data > data.min()], 99.5), BINS + 1)[:-1],
            np.inf,
        ]

    joint, *_ = np.histogram2d(
        fixed.data[points][inside], sampled, [edges(fixed.data), edges(moving.data)]
    )
    joint /= joint.sum()
    apart = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    expected = (joint[joint > 0] * np.log(joint[joint > 0] / apart[joint > 0])).sum()
    information = MutualInformation(moving, fixed, points)
    assert 0.3 < inside.mean() < 0.99
    assert information(affine) == pytest.approx(inside.mean() * expected, rel=1e-3)
    of_fixed = joint.sum(axis=1)
    of_fixed = -(of_fixed[of_fixed > 0] * np.log(of_fixed[of_fixed > 0])).sum()
    assert information.uncertainty_coefficient(affine) == pytest.approx(
        expected / of_fixed, rel=1e-3
    )


def test_an_image_tells_all_of_itself_and_nothing_from_afar():
    image = volume_of(head, centred_grid("LAS", (23, 25, 21), (2, 2, 2)))
    information = MutualInformation(image, image, np.ones(image.data.shape, bool))
    assert information.uncertainty_coefficient(np.eye(4)) == pytest.approx(1)
    far = nib.affines.from_matvec(np.eye(3), (500.0, 0.0, 0.0))
    assert information(far) == information.uncertainty_coefficient(far) == 0
    inverted = Volume(image.data.max() - image.data, image.grid)
    other = MutualInformation(inverted, image, np.ones(image.data.shape, bool))
    assert (
        other.uncertainty_coefficient(np.eye(4)) > 0.7
    )  # contrast need not be equal, bins only fall otherwise


def test_masked_voxels_tell_nothing():
    image = volume_of(head, centred_grid("LAS", (23, 25, 21), (2, 2, 2)))
    half = np.zeros(image.data.shape, bool)
    half[:12] = True
    masked = MutualInformation(image, image, np.ones(image.data.shape, bool), half)
    only = MutualInformation(image, image, half)
    assert masked(np.eye(4)) == pytest.approx(only(np.eye(4)) * half.mean())


@pytest.mark.parametrize("scale", [None, np.log(1.3)])
def test_pose_keeps_the_size_unless_told_otherwise(scale):
    fixed = volume_of(head, centred_grid("RAS", (20, 21, 19), (3, 3, 3)))
    moving = volume_of(head, centred_grid("RAS", (40, 42, 38), (1.5, 1.5, 1.5)))
    information = MutualInformation(moving, fixed, fixed.data > -1)
    pose = find_pose(information, np.zeros(3), np.zeros(3), 45.0, scale)
    across = pose[:3, :3] @ pose[:3, :3].T
    np.testing.assert_allclose(across, np.eye(3) * across[0, 0], atol=1e-12)
    if scale is None:
        np.testing.assert_allclose(across, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(pose, np.eye(4), atol=3.0)  # a voxel
    np.testing.assert_allclose(pose[:3, :3], np.eye(3), atol=0.15)

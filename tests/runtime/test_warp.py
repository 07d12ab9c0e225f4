from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.images.volume import Volume

from .phantoms import affine_of, centred_grid, head, head_labels, volume_of, world_points


def test_zero_displacement_is_the_identity():
    moving = volume_of(head, Grid((5, 6, 7), affine_of("oblique", (3.0, 4.0, 5.0))))
    field = DisplacementField(moving.grid, np.zeros((5, 6, 7, 3), np.float32))
    np.testing.assert_allclose(warp_volume(moving, field).data, moving.data, rtol=1e-5, atol=1e-5)


def test_one_voxel_shift():
    moving = Volume(np.arange(210, dtype=np.float32).reshape(5, 6, 7), Grid((5, 6, 7), np.eye(4)))
    vectors = np.zeros((5, 6, 7, 3), np.float32)
    vectors[..., 1] = 1
    warped = warp_volume(moving, DisplacementField(moving.grid, vectors))
    np.testing.assert_array_equal(warped.data[:, :-1], moving.data[:, 1:])
    assert (warped.data[:, -1] == moving.data.min()).all()


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "SPR", "oblique"])
@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
def test_warp_agrees_with_scipy(orientation, interpolation, order):
    moving = volume_of(head, centred_grid(orientation, (46, 52, 40), (0.9, 1.0, 1.1)))
    grid = centred_grid("LPS", (13, 15, 11), (2.0, 2.1, 2.2))
    vectors = np.random.default_rng(0).normal(scale=2, size=(*grid.shape, 3)).astype(np.float32)
    to_index = np.linalg.inv(moving.grid.affine)
    index = (world_points(grid) + vectors) @ to_index[:3, :3].T + to_index[:3, 3]
    expected = map_coordinates(moving.data, np.moveaxis(index, -1, 0), order=order)
    warped = warp_volume(moving, DisplacementField(grid, vectors), interpolation)
    np.testing.assert_allclose(warped.data, expected, atol=1e-2)


def test_labels_survive_nearest_warp():
    moving = volume_of(head_labels, centred_grid("RAS", (46, 52, 40)))
    vectors = np.full((*moving.grid.shape, 3), 0.37, np.float32)
    warped = warp_volume(moving, DisplacementField(moving.grid, vectors), "nearest")
    assert warped.data.dtype == moving.data.dtype
    assert set(np.unique(warped.data)) == {0, 1, 2, 7}

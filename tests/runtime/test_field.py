from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from paramorph_rt.geometry.field import DisplacementField, field_from_network
from paramorph_rt.geometry.spaces import Grid

from .phantoms import affine_of, centred_grid, smooth_displacement_vox, world_points

ORIENTATIONS = ["RAS", "LAS", "LPS", "SPR", "oblique"]


@pytest.fixture(params=ORIENTATIONS)
def field(request) -> DisplacementField:
    grid = centred_grid(request.param, (20, 24, 16), (2.0, 2.5, 3.0), (5.0, -6.0, 7.0))
    return field_from_network(smooth_displacement_vox(grid.shape), grid)


def test_one_voxel_is_one_spacing_along_its_axis():
    grid = Grid((5, 6, 7), affine_of("LPS", (1.0, 2.0, 3.0)))
    displacement_vox = np.zeros((3, 5, 6, 7), np.float32)
    displacement_vox[1] = 1
    field = field_from_network(displacement_vox, grid)
    np.testing.assert_array_equal(field.vectors_mm[2, 3, 4], [0, -2, 0])


def test_network_output_points_to_the_displaced_voxel(field):
    displacement_vox = smooth_displacement_vox(field.grid.shape)
    index = np.stack(np.meshgrid(*map(np.arange, field.grid.shape), indexing="ij"), axis=-1)
    target = field.grid.world(index + np.moveaxis(displacement_vox, 0, -1))
    np.testing.assert_allclose(world_points(field.grid) + field.vectors_mm, target, atol=1e-4)


def test_reference_sampling_is_what_the_reference_samples():
    torch = pytest.importorskip("torch", reason="needs torch for the reference's own sampler")
    rng = np.random.default_rng(0)
    shape = (8, 9, 10)
    image = rng.normal(size=shape).astype(np.float32)
    displacement_vox = rng.normal(scale=0.3, size=(3, *shape)).astype(np.float32)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    normalised = [2 * (index[a] + displacement_vox[a]) / (shape[a] - 1) - 1 for a in range(3)]
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(image)[None, None],
        torch.from_numpy(np.stack(normalised[::-1], axis=-1)).float()[None],
        align_corners=False,
    )[0, 0].numpy()
    field = field_from_network(displacement_vox, Grid(shape, np.eye(4)), "reference")
    expected = map_coordinates(image, index + np.moveaxis(field.vectors_mm, -1, 0), order=1)
    inner = (slice(2, -2),) * 3  # at the border the reference mixes with its zero padding
    np.testing.assert_allclose(sampled[inner], expected[inner], atol=1e-4)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_resampling_agrees_with_scipy_and_extends_the_border(field, orientation):
    target = centred_grid(orientation, (31, 33, 35), (2.1, 2.2, 2.3), (4.0, -5.0, 6.0))
    result = field.resampled_to(target)
    to_index = np.linalg.inv(field.grid.affine)
    index = world_points(target) @ to_index[:3, :3].T + to_index[:3, 3]
    assert index.min() < -2  # the target reaches beyond the field
    for c in range(3):
        expected = map_coordinates(
            field.vectors_mm[..., c], np.moveaxis(index, -1, 0), order=1, mode="nearest"
        )
        np.testing.assert_allclose(result.vectors_mm[..., c], expected, atol=1e-4)


def test_composition_is_the_affine_of_the_displaced_point(field):
    affine = np.eye(4)
    affine[:3] += np.random.default_rng(0).normal(scale=0.1, size=(3, 4))
    affine[:3, 3] = (30.0, -300.0, 20.0)
    points = world_points(field.grid)
    expected = (points + field.vectors_mm) @ affine[:3, :3].T + affine[:3, 3] - points
    composed = affine @ field
    # float32 at 300 mm is exact to 3e-5 mm, and a few such terms are summed.
    np.testing.assert_allclose(composed.vectors_mm, expected, atol=2e-4)
    assert composed.vectors_mm.dtype == np.float32


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 40)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_jacobian_of_a_linear_map_is_its_determinant(orientation, shape):
    grid = centred_grid(orientation, shape, (1.0, 1.5, 3.0))
    matrix = np.eye(3) + np.random.default_rng(0).normal(scale=0.3, size=(3, 3))
    points = world_points(grid)
    field = DisplacementField(grid, (points @ (matrix - np.eye(3)).T).astype(np.float32))
    np.testing.assert_allclose(
        field.jacobian_determinant(), np.linalg.det(matrix), rtol=1e-3, atol=1e-3
    )


def test_jacobian_agrees_with_differences_over_the_whole_array(field):
    slopes = np.stack([np.gradient(field.vectors_mm[..., c]) for c in range(3)])
    slopes = np.moveaxis(slopes, (0, 1), (-2, -1))  # (i, j, k, component, array axis)
    expected = np.linalg.det(np.eye(3) + slopes @ np.linalg.inv(field.grid.affine[:3, :3]))
    np.testing.assert_allclose(field.jacobian_determinant(), expected, atol=1e-4)

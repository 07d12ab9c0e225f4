from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import paramorph_rt
from paramorph_rt.geometry import spaces
from paramorph_rt.geometry.spaces import Grid

from .phantoms import affine_of, centred_grid, world_points

ORIENTATIONS = ("RAS", "LAS", "LPS", "SPR", "oblique")


@pytest.fixture(params=ORIENTATIONS)
def grid(request) -> Grid:
    return Grid((5, 6, 7), affine_of(request.param, (1.0, 1.5, 3.0), (10.0, -20.0, 30.0)))


def test_itk_image_lies_where_the_grid_says(grid):
    image = spaces.to_sitk(np.zeros(grid.shape, np.float32), grid)
    index = (4, 1, 2)
    lps = np.array(image.TransformIndexToPhysicalPoint(index))
    np.testing.assert_allclose(lps * [-1, -1, 1], world_points(grid)[index], atol=1e-6)


def test_scalars_survive_the_way_to_itk_and_back(grid):
    data = np.random.default_rng(0).normal(size=grid.shape).astype(np.float32)
    returned, returned_grid = spaces.from_sitk(spaces.to_sitk(data, grid))
    np.testing.assert_array_equal(returned, data)
    assert returned_grid.matches(grid, 1e-6)


def test_vectors_are_flipped_on_the_way_to_itk_and_back(grid):
    vectors = np.random.default_rng(0).normal(size=(*grid.shape, 3)).astype(np.float32)
    image = spaces.to_sitk(vectors, grid)
    np.testing.assert_array_equal(image[1, 2, 3], vectors[1, 2, 3] * [-1, -1, 1])
    np.testing.assert_array_equal(spaces.from_sitk(image)[0], vectors)


def test_itk_affine_moves_the_same_points():
    transform = np.eye(4)
    transform[:3] = np.random.default_rng(0).normal(size=(3, 4))
    point = np.array([3.0, -4.0, 5.0])
    lps = np.array(spaces.itk_affine(transform).TransformPoint((point * [-1, -1, 1]).tolist()))
    np.testing.assert_allclose(lps * [-1, -1, 1], transform[:3, :3] @ point + transform[:3, 3])


def test_affine_is_read_off_any_linear_itk_transform():
    euler = sitk.Euler3DTransform((1.0, 2.0, 3.0), 0.1, 0.2, 0.3, (4.0, 5.0, 6.0))
    affine = spaces.affine_from_itk(euler)
    point = np.array([7.0, 8.0, 9.0])
    expected = np.array(euler.TransformPoint(point.tolist())) * [-1, -1, 1]
    np.testing.assert_allclose(affine[:3, :3] @ (point * [-1, -1, 1]) + affine[:3, 3], expected)


def test_network_grid_has_the_orientation_and_centre_asked_for(grid):
    box_lo, box_hi = (1, 0, 2), (4, 5, 7)
    network = spaces.network_grid(grid, box_lo, box_hi, [(20, 24, 16)], (2.0, 2.5, 3.0), "LPI")
    assert network.orientation == "LPI"
    np.testing.assert_allclose(network.spacing, (2.0, 2.5, 3.0))
    middle = network.world((np.array(network.shape) - 1) / 2)
    np.testing.assert_allclose(middle, grid.world([2.0, 2.0, 4.0]), atol=1e-9)


def test_network_grid_keeps_oblique_axes():
    grid = Grid((5, 6, 7), affine_of("oblique"))
    network = spaces.network_grid(grid, (0, 0, 0), (5, 6, 7), [(8, 8, 8)], (1.0, 1.0, 1.0), "RAS")
    np.testing.assert_allclose(np.abs(network.directions.T @ grid.directions), np.eye(3), atol=1e-9)


def test_network_grid_grows_by_one_factor_until_the_box_fits():
    grid = centred_grid("RAS", (40, 60, 30))
    network = spaces.network_grid(
        grid, (0, 0, 0), (40, 60, 30), [(20, 20, 20)], (1.0, 2.0, 3.0), "RAS"
    )
    np.testing.assert_allclose(network.spacing, (2.0, 4.0, 6.0))


@pytest.mark.parametrize(
    ("box", "shape", "growth"),
    [
        ((8, 8, 8), (8, 8, 8), 1.0),
        ((9, 8, 8), (12, 10, 8), 1.0),
        ((8, 8, 16), (8, 8, 16), 1.0),
        ((12, 10, 9), (16, 16, 16), 1.0),
        ((20, 16, 8), (16, 16, 16), 1.25),
        ((8, 8, 24), (8, 8, 16), 1.5),  # as fine as in the largest, for fewer voxels
    ],
)
def test_network_grid_takes_the_smallest_shape_that_its_box_fits_into(box, shape, growth):
    shapes = [(12, 10, 8), (16, 16, 16), (8, 8, 8), (8, 8, 16)]
    grid = centred_grid("RAS", (30, 30, 30), (2.0, 2.0, 2.0))
    network = spaces.network_grid(grid, (0, 0, 0), box, shapes, (2.0, 2.0, 2.0), "RAS")
    assert network.shape == shape
    np.testing.assert_allclose(network.spacing, 2 * growth)


def test_index_undoes_world(grid):
    index = np.random.default_rng(0).uniform(-5, 9, (4, 2, 3))
    np.testing.assert_allclose(grid.index(grid.world(index)), index, atol=1e-12)
    positions = nib.affines.apply_affine(np.linalg.inv(grid.affine), grid.world(index))
    np.testing.assert_allclose(grid.index(grid.world(index)), positions, atol=1e-12)


def test_cropping_moves_no_voxel(grid):
    part = grid.cropped((1, 2, 3), (4, 4, 7))
    assert part.shape == (3, 2, 4)
    np.testing.assert_allclose(world_points(part), world_points(grid)[1:4, 2:4, 3:7], atol=1e-12)


def test_padding_is_undone_by_cropping(grid):
    padded = grid.padded((1, 0, 2), (3, 1, 0))
    assert padded.shape == (9, 7, 9)
    assert padded.cropped((1, 0, 2), (6, 6, 9)).matches(grid, 1e-12)
    assert grid.padded((2, 2, 2)).shape == (9, 10, 11)


@pytest.mark.parametrize("steps", [3, (1, 2, 4)])
def test_coarsened_grid_has_every_so_many_voxels(grid, steps):
    i, j, k = np.broadcast_to(steps, 3)
    expected = world_points(grid)[::i, ::j, ::k]
    coarse = grid.coarsened(steps)
    assert coarse.shape == expected.shape[:3]
    np.testing.assert_allclose(world_points(coarse), expected, atol=1e-12)


def test_grid_by_its_spacing_lies_where_its_origin_or_its_centre_does(grid):
    given = grid.shape, grid.spacing, grid.directions
    assert Grid.from_spacing(*given, origin=grid.affine[:3, 3]).matches(grid, 1e-12)
    centre = world_points(grid).mean(axis=(0, 1, 2))
    assert Grid.from_spacing(*given, centre=centre).matches(grid, 1e-12)


def test_grid_says_what_it_is():
    grid = Grid((5, 6, 7), affine_of("LPS", (1.0, 1.5, 3.0), (10.0, -20.0, 30.0)))
    assert repr(grid) == "Grid(5 × 6 × 7 voxels of 1 × 1.5 × 3 mm, LPS, origin (10, -20, 30) mm)"


def test_grids_match_within_header_rounding_only():
    grid = Grid((50, 60, 70), affine_of("LAS", origin=(10, 20, 30)))
    rounded = Grid(grid.shape, grid.affine.astype(np.float32) * np.float32(1 + 1e-6))
    shifted = grid.affine.copy()
    shifted[0, 3] += 0.1
    assert grid.matches(rounded)
    assert not grid.matches(Grid(grid.shape, shifted))
    assert not grid.matches(Grid((50, 60, 71), grid.affine))


def test_axis_signs_are_flipped_in_spaces_only():
    sources = Path(paramorph_rt.__file__).parent.rglob("*.py")
    flipping = {
        path.name
        for path in sources
        if any(
            text in path.read_text(encoding="utf-8") for text in ("-1, -1, 1", "-1.0, -1.0, 1.0")
        )
    }
    assert flipping == {"spaces.py"}

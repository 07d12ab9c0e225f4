from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.spaces import flip_vectors
from paramorph_rt.geometry.transform import Affine, as_transform

from .phantoms import centred_grid, smooth_displacement_vox

POINTS = np.random.default_rng(1).uniform(-4, 4, (3, 5, 3))


@pytest.fixture
def matrix() -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3] += np.random.default_rng(0).normal(scale=0.1, size=(3, 4))
    return matrix


@pytest.fixture
def field() -> DisplacementField:
    grid = centred_grid("oblique", (20, 24, 16), (1, 2, 1.5))
    vectors = np.moveaxis(smooth_displacement_vox(), 0, -1)
    return DisplacementField(grid, vectors.astype(np.float32))


@pytest.fixture(params=["affine", "field"])
def transform(request, matrix, field):
    return as_transform({"affine": matrix, "field": field}[request.param])


def by_itk(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    moved = [transform.TransformPoint(p) for p in flip_vectors(points).reshape(-1, 3).tolist()]
    return flip_vectors(np.array(moved)).reshape(points.shape)


def test_points_go_where_itk_sends_them(transform):
    expected = by_itk(transform.to_itk(), POINTS)
    np.testing.assert_allclose(transform.map(POINTS), expected, atol=1e-5)


def test_transform_is_followed_by_an_affine(transform, matrix):
    both = matrix @ transform
    # The composed vectors are float32.
    expected = Affine(matrix).map(transform.map(POINTS))
    np.testing.assert_allclose(both.map(POINTS), expected, atol=1e-4)


def test_affine_is_undone_by_its_inverse(matrix):
    affine = Affine(matrix)
    np.testing.assert_allclose(affine.inverse().map(affine.map(POINTS)), POINTS, atol=1e-12)


def test_affine_on_a_grid_is_the_same_map(matrix, field):
    affine = Affine(matrix)
    np.testing.assert_allclose(affine.on(field.grid).map(POINTS), affine.map(POINTS), atol=1e-5)


def test_points_outside_a_field_become_nan(field):
    index = np.array([[-0.4, 5, 5], [-0.6, 5, 5], [19.4, 23, 15], [np.nan, 5, 5], [3, 24.6, 5]])
    mapped = field.map(field.grid.world(index))
    assert np.isnan(mapped).all(axis=1).tolist() == [False, True, False, True, True]


def test_affine_is_an_array_like_those_that_callers_pass(matrix):
    affine = as_transform(matrix)
    assert isinstance(affine, np.ndarray)
    np.testing.assert_array_equal(affine @ affine, matrix @ matrix)
    for product in (affine @ affine, matrix @ affine, affine @ matrix):
        assert isinstance(product, Affine)

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from paramorph_rt.errors import TransformError
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.inverse import TOLERANCE_MM, invert_field
from paramorph_rt.geometry.spaces import from_sitk, to_sitk
from paramorph_rt.metrics.consistency import consistency_mm

from .phantoms import centred_grid, head, volume_of, world_points

FIXED = ("LAS", (40, 44, 30), (1.5, 1.4, 2.0))
MOVING = ("oblique", (33, 36, 31), (1.2, 1.3, 1.1))


def affine_with(offset_mm) -> np.ndarray:
    affine = np.eye(4)
    affine[:3] += np.random.default_rng(3).normal(scale=0.08, size=(3, 4))
    affine[:3, 3] = offset_mm
    return affine


def field_of(function, offset_mm=(0.0, 0.0, 0.0)) -> DisplacementField:
    """A displacement by `function` of the fixed world, then an affine."""
    grid = centred_grid(*FIXED)
    vectors = function(world_points(grid)).astype(np.float32)
    return affine_with(offset_mm) @ DisplacementField(grid, vectors)


def waves(points: np.ndarray) -> np.ndarray:
    """Smooth, with slopes up to 0.4."""
    x, y, z = np.moveaxis(points, -1, 0)
    return 4 * np.stack([np.sin(y / 10), np.cos(x / 11 + z / 12), np.sin((z - x) / 13)], axis=-1)


def stretch(points: np.ndarray) -> np.ndarray:
    """Along x, slopes from -0.7 to 2.1: the plain fixed point would swing ever wider."""
    x = points[..., 0]
    along = 0.7 * x + 9.8 * np.sin(x / 7)
    return np.stack([along, 0 * x, 0 * x], axis=-1)


def error_by_scipy(field: DisplacementField, inverse: DisplacementField) -> np.ndarray:
    """``|field(inverse(y)) - y|``, NaN where inverse(y) is not in the field's grid."""
    y = world_points(inverse.grid)
    x = y + inverse.vectors_mm
    to_index = np.linalg.inv(field.grid.affine)
    index = np.moveaxis(x @ to_index[:3, :3].T + to_index[:3, 3], -1, 0)
    shape = np.array(field.grid.shape).reshape(3, 1, 1, 1)
    inside = ((index >= 0) & (index <= shape - 1)).all(axis=0)
    u = [map_coordinates(field.vectors_mm[..., c], index, order=1) for c in range(3)]
    error = np.linalg.norm(x + np.stack(u, axis=-1) - y, axis=-1)
    return np.where(inside, error, np.nan)


def test_affine_is_inverted_exactly_even_far_away():
    offset = (80.0, -120.0, 60.0)
    field = field_of(np.zeros_like, offset)
    grid = centred_grid(*MOVING, offset)
    points = world_points(grid)
    back = np.linalg.inv(affine_with(offset))
    expected = points @ back[:3, :3].T + back[:3, 3] - points
    inverse = invert_field(field, grid)
    np.testing.assert_allclose(inverse.field.vectors_mm, expected, atol=1e-3)
    assert inverse.field.grid is grid
    assert inverse.error_mm.max() < 1e-3


@pytest.mark.parametrize(("function", "highest_mm"), [(waves, 0.02), (stretch, 0.1)])
def test_there_and_back_ends_where_it_began(function, highest_mm):
    field = field_of(function, (3.0, -4.0, 5.0))
    inverse = invert_field(field, centred_grid(*MOVING, (3.0, -4.0, 5.0)))
    error = error_by_scipy(field, inverse.field)
    inside = np.isfinite(error)
    assert inside.mean() > 0.8
    assert np.nanmean(error) < 0.005
    assert np.nanmax(error) < highest_mm
    np.testing.assert_allclose(inverse.error_mm[inside], error[inside], atol=1e-3)


def test_error_is_told_where_the_field_folds():
    def folded(points):
        return np.stack([-12 * np.sin(points[..., 0] / 6), *[0 * points[..., 0]] * 2], axis=-1)

    field = field_of(folded)
    assert (field.jacobian_determinant() < 0).mean() > 0.1
    inverse = invert_field(field, centred_grid(*FIXED))
    error = error_by_scipy(field, inverse.field)
    inside = np.isfinite(error)
    np.testing.assert_allclose(inverse.error_mm[inside], error[inside], atol=1e-3)


def test_field_onto_a_plane_has_no_inverse():
    grid = centred_grid(*FIXED)
    vectors = -world_points(grid) * [1, 0, 0]
    with pytest.raises(TransformError, match="maps everything into a plane"):
        invert_field(DisplacementField(grid, vectors.astype(np.float32)), grid)


def test_consistency_counts_the_foreground_that_comes_from_the_fixed_grid():
    field = field_of(waves)
    moving = volume_of(head, centred_grid("oblique", (50, 54, 46)))
    fixed = volume_of(head, field.grid)
    inverse = invert_field(field, moving.grid)
    result = consistency_mm(inverse, field, moving, fixed)
    ways = {
        "from_moving": (moving, error_by_scipy(field, inverse.field)),
        "from_fixed": (fixed, error_by_scipy(inverse.field, field)),
    }
    assert set(result) == set(ways)
    for way, (image, error) in ways.items():
        shown = image.data > 0.05 * np.percentile(image.data, 99.5)
        counted = error[shown & np.isfinite(error)]
        np.testing.assert_allclose(result[way]["mean"], counted.mean(), atol=1e-3)
        np.testing.assert_allclose(result[way]["max"], counted.max(), atol=2e-3)
        assert result[way]["mean"] < result[way]["p99"] < result[way]["max"]
    assert result["from_moving"]["max"] < 0.05
    # The inverse lies on voxels, between which it is interpolated.
    assert result["from_moving"]["mean"] < result["from_fixed"]["mean"] < 0.05


def test_consistency_is_the_same_of_an_image_on_another_grid():
    field = field_of(waves)
    inverse = invert_field(field, centred_grid("oblique", (50, 54, 46)))
    moving, fixed, finer = (
        volume_of(head, grid)
        for grid in (inverse.field.grid, field.grid, centred_grid("RAS", (70, 80, 70), (1, 1, 1)))
    )
    there = consistency_mm(inverse, field, moving, fixed)["from_fixed"]
    here = consistency_mm(inverse, field, moving, finer)["from_fixed"]
    assert here["mean"] == pytest.approx(there["mean"], rel=0.05)


def test_nothing_counts_where_both_ways_lead_outside():
    field = field_of(waves)
    moving = volume_of(head, centred_grid(*MOVING))
    elsewhere = centred_grid("RAS", (10, 10, 10), centre=(500, 0, 0))
    inverse = invert_field(
        DisplacementField(elsewhere, field.vectors_mm[:10, :10, :10]), moving.grid
    )
    assert consistency_mm(inverse, field, moving, None) == {"from_moving": None}


@pytest.mark.parametrize("name", ["inverse", "iterative"])
def test_no_worse_than_the_inverses_of_itk(name):
    """On the field's own grid and without an affine, which ITK's filters need."""
    grid = centred_grid("LPS", (40, 44, 36), (1.5, 1.5, 1.5))
    field = DisplacementField(grid, waves(world_points(grid)).astype(np.float32))
    inner = (slice(8, -8),) * 3
    ours = error_by_scipy(field, invert_field(field, grid).field)[inner]
    image = to_sitk(field.vectors_mm.astype(np.float64), grid)
    if name == "inverse":
        found = sitk.InvertDisplacementField(image, 50, 1e-3, 1e-3)
    else:
        found = sitk.IterativeInverseDisplacementField(image, 50, 1e-3)
    theirs = DisplacementField(grid, from_sitk(found)[0])
    theirs_mm = error_by_scipy(field, theirs)[inner]
    assert np.nanmean(ours) <= np.nanmean(theirs_mm) + TOLERANCE_MM
    assert np.nanmax(ours) <= np.nanmax(theirs_mm) + TOLERANCE_MM

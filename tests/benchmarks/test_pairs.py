from __future__ import annotations

import numpy as np
import pytest
from medpy.metric.binary import dc as medpy_dice

from pairs import LabelledPair, evaluate, mean_dice
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume
from record import BenchmarkError

from ..runtime.phantoms import centred_grid, head, head_labels, volume_of
from .conftest import shifted

SHIFT_VOX = (2, -1, 1)


@pytest.fixture(scope="module", params=["RAS", "LPS", "oblique"])
def pair(request) -> LabelledPair:
    """The moving phantom is the fixed one, moved by whole voxels of an anisotropic grid."""
    grid = centred_grid(request.param, (56, 44, 30), (1.0, 1.5, 2.0))
    image, labels = volume_of(head, grid), volume_of(head_labels, grid)
    return LabelledPair(shifted(image, SHIFT_VOX), image, shifted(labels, SHIFT_VOX), labels)


def constant_field(grid: Grid, vector_mm) -> DisplacementField:
    return DisplacementField(grid, np.full((*grid.shape, 3), vector_mm, np.float32))


def test_identity_measures_the_overlap_as_it_is(pair):
    found = evaluate(constant_field(pair.fixed.grid, 0), pair)
    moving, fixed = pair.moving_labels.data, pair.fixed_labels.data
    overlap = [medpy_dice(moving == label, fixed == label) for label in (1, 2, 7)]
    assert found["dice"] == pytest.approx(np.mean(overlap))
    assert found["hd95_mm"] >= found["assd_mm"] > 0.5
    assert found["nonpositive_jacobian_percent"] == found["sd_log_jacobian"] == 0


def test_the_true_translation_matches_everything(pair):
    translation_mm = pair.fixed.grid.affine[:3, :3] @ SHIFT_VOX
    found = evaluate(constant_field(pair.fixed.grid, translation_mm), pair)
    assert found["dice"] == 1
    assert found["assd_mm"] == found["hd95_mm"] == 0
    assert found["ncc"] == pytest.approx(1, abs=1e-6)


def test_a_field_on_another_grid_is_refused(pair):
    other = Grid(pair.fixed.grid.shape, pair.fixed.grid.affine @ np.diag([1, 1, 1.1, 1]))
    with pytest.raises(BenchmarkError, match="expected it on the grid of volume"):
        evaluate(constant_field(other, 0), pair)


def test_labels_that_a_method_warped_itself_count_alike(pair):
    assert mean_dice(pair.fixed_labels, pair) == 1
    lost = np.where(pair.fixed_labels.data == 7, 0, pair.fixed_labels.data)
    assert mean_dice(Volume(lost, pair.fixed.grid), pair) == pytest.approx(2 / 3)

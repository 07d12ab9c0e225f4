"""Descriptors of self-similarity, and when a refinement compares them."""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from paramorph_rt import Registration
from paramorph_rt.bundle import NO_MODEL
from paramorph_rt.images.volume import Volume
from paramorph_rt.metrics.similarity import ncc
from paramorph_rt.quality.choice import metric_for
from paramorph_rt.quality.domain import Domain
from paramorph_rt.refinement.self_similarity import (
    LEAST_LINEARITY,
    LEAST_NCC,
    WEIGHT,
    are_unlike,
    descriptors,
    linearity,
)
from paramorph_rt.refinement.settings import Level

from .phantoms import centred_grid, head, volume_of

GRID = centred_grid("RAS", (44, 52, 40))


def by_hand(image: np.ndarray, at: tuple[int, int, int]) -> np.ndarray:
    """MIND-SSC of one voxel, patch by patch, in the order of the descriptors."""
    six = [sign * axis for axis in np.eye(3, dtype=int) for sign in (1, -1)]

    def patch(offset: np.ndarray) -> np.ndarray:
        return image[tuple(slice(x + o - 1, x + o + 2) for x, o in zip(at, offset, strict=True))]

    distances = np.array(
        [
            np.mean((patch(first) - patch(second)) ** 2)
            for first, second in combinations(six, 2)
            if (first + second).any()  # not on opposite sides
        ]
    )
    spread = distances - distances.min()
    return np.exp(-spread / spread.mean())


def test_descriptors_are_those_worked_out_by_hand():
    image = np.random.default_rng(0).random((9, 10, 11), np.float32)
    found = descriptors(image)
    assert found.shape == (12, 9, 10, 11)
    for at in ((4, 5, 5), (3, 4, 6)):
        np.testing.assert_allclose(found[(..., *at)], WEIGHT * by_hand(image, at), rtol=1e-4)


def test_descriptors_mind_no_unit_and_no_inversion():
    image = volume_of(head, GRID).data
    np.testing.assert_allclose(descriptors(image), descriptors(300 - 5 * image), atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_image_without_contrast_has_finite_descriptors(value):
    assert np.isfinite(descriptors(np.full((5, 6, 7), value, np.float32))).all()


def folded(points: np.ndarray) -> np.ndarray:
    """Another contrast: neither the head's nor its inverse."""
    image = head(points)
    return np.where(image > 0, 20 + 100 * np.sin(image / 18) ** 2, 0).astype(np.float32)


def bent(points: np.ndarray) -> np.ndarray:
    return points + 2.5 * np.sin(points[..., ::-1] / 8)


def errors(metric: str, function) -> tuple[float, str]:
    """Mean distance in mm from the deformation between a head and a bent one, and what was used."""
    fixed = volume_of(function, GRID, through=bent)
    result = Registration(NO_MODEL, 2)(volume_of(head, GRID), fixed, affine=False, metric=metric)
    truth = bent(GRID.positions()) - GRID.positions()
    inside = fixed.data > 10
    off = np.linalg.norm(result.displacement.vectors_mm - truth, axis=-1)[inside]
    return float(off.mean()), result.metrics["refinement"]["metric"]


def test_unlike_contrasts_are_compared_by_descriptors():
    by_intensities, by_descriptors = errors("ncc", folded), errors("mind", folded)
    assert (by_intensities[1], by_descriptors[1]) == ("ncc", "mind")
    assert by_descriptors[0] < 0.8 * by_intensities[0]


def test_auto_tells_unlike_pairs_from_like_ones():
    moving, like = volume_of(head, GRID), volume_of(head, GRID, through=bent)
    inverted = Volume((200 - like.data) * (like.data > 0), GRID, "inverted.nii")
    for fixed, expected in ((like, "ncc"), (inverted, "mind")):
        assert are_unlike(moving.data, fixed.data) == (expected == "mind")
        result = Registration(NO_MODEL, 2)(moving, fixed, affine=False, refine=1)
        assert result.metrics["refinement"]["metric"] == expected


def brightest_dimmed(points: np.ndarray) -> np.ndarray:
    """A contrast that goes with the head's but for its brightest tissue, as FLAIR does with T1."""
    image = head(points)
    return np.where(image > 100, 50, image).astype(np.float32)


def test_a_contrast_that_differs_in_one_tissue_is_told_though_it_correlates():
    fixed, moving = volume_of(head, GRID).data, volume_of(brightest_dimmed, GRID).data
    inside = fixed > 10
    assert ncc(fixed[inside], moving[inside]) > LEAST_NCC
    assert linearity(fixed[inside], moving[inside]) < LEAST_LINEARITY
    assert are_unlike(moving, fixed)
    shaded = fixed * np.linspace(0.7, 1.3, GRID.shape[0], dtype=np.float32)[:, None, None]
    assert not are_unlike(shaded, fixed)


def test_a_level_too_fine_for_descriptors_is_not_said_to_compare_them():
    moving, fixed = volume_of(head, GRID), volume_of(head, GRID, through=bent)
    result = Registration(NO_MODEL, 2)(
        moving, fixed, affine=False, metric="mind", refine=[Level(1.0, 2)]
    )
    assert result.metrics["refinement"]["metric"] == "ncc"


def test_a_model_of_one_contrast_vouches_for_it():
    any_contrast = SimpleNamespace(domain=Domain("brains"))
    one = SimpleNamespace(domain=Domain("T1 brains", ranks=np.zeros((20, 24, 20), np.float32)))
    chosen = [metric_for(model, "auto") for model in (None, any_contrast, one)]
    assert chosen == ["auto", "auto", "ncc"]
    assert metric_for(one, "mind") == "mind"


def test_linearity_is_told_by_hand_made_images():
    ramp = np.repeat(np.arange(40.0), 50)
    assert linearity(ramp, 3 * ramp + 7) == pytest.approx(1, abs=0.01)
    assert linearity(ramp, -ramp) == pytest.approx(-1, abs=0.01)
    assert linearity(ramp, (ramp - 19.5) ** 2) == pytest.approx(0, abs=0.01)
    assert linearity(ramp, np.ones_like(ramp)) is None

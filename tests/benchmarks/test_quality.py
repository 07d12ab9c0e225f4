from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import quality_pairs
import troubles
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume
from paramorph_rt.quality import score
from paramorph_rt.quality.looks import look_of
from quality import fitted
from quality_page import rates_of
from sets import PairSet, ring


def row(accepted: bool, number: int, **more) -> dict:
    rng = np.random.default_rng(number)
    good, noise = float(accepted), rng.normal(scale=0.1)
    evidence = {
        "uncertainty_coefficient": 0.2 + 0.3 * good + noise / 10,
        "overlap": 0.7 + 0.25 * good,
        "ncc": 0.9 - 0.1 * good,  # says the opposite: gets no weight
        "roughness": 0.6 - 0.4 * good,
        "folds": 0.0,
        "reach": 0.1,
        "doubts": 0,
    }
    return {
        "group": "calibration",
        "set": "brains",
        "case": "x",
        "accepted": accepted,
        "model": "none",
        "flags": [],
        "dice_after": 0.4 + 0.2 * good,
        "evidence": evidence,
    } | more


def test_the_fit_parts_good_from_bad_with_the_signs_that_are_known(monkeypatch):
    rows = [row(number % 2 == 0, number) for number in range(20)]
    unseen = row(False, 1, case="mirrored", evidence=row(True, 2)["evidence"])
    model = fitted([*rows, unseen, {"group": "judged"}])
    assert (model["pairs"], model["accepted"]) == (20, 10)
    assert (
        model["parts"]["uncertainty_coefficient"]["weight"]
        > 0
        > model["parts"]["roughness"]["weight"]
    )
    assert "ncc" not in model["parts"]
    monkeypatch.setattr(score, "coefficients", lambda: model)
    for one in rows:
        assert (score.score_of(one["evidence"]) > 0.5) == one["accepted"]


def test_rates_count_refused_and_warned_pairs_as_rejected():
    judged = [
        row(True, 2, score=0.9),
        row(True, 4, score=0.4),
        row(False, 1, score=0.1),
        row(False, 3, score=0.8, flags=["orientation (pair)", "contrast (moving)"]),
        row(False, 5, score=0.8, flags=["contrast (moving)", "dice_fell (pair)"]),
        {"accepted": False, "refused": "no"},
    ]
    by_score = rates_of("judged", "score", judged)
    assert (by_score["specificity"], by_score["sensitivity"]) == (0.5, 0.5)
    assert by_score["auc"] == pytest.approx(4 / 6)
    assert rates_of("judged", "score or warning", judged)["sensitivity"] == 0.75


def test_what_is_planted_is_there():
    grid = Grid((20, 24, 22), np.eye(4))
    far = ((np.indices(grid.shape).T - [10, 12, 11]) ** 2).sum(-1).T
    data = np.where(far < 64, 100 - far + np.indices(grid.shape)[2], 0).astype(np.float32)
    task = troubles.Planted(
        *[Volume(data, grid, "x")] * 2, *[Volume((data > 0) * 3, grid, "l")] * 2
    )
    for name, plant in troubles.PLANTED.items():
        found = plant(task)
        unlike = found.network or found.options or not np.array_equal(found.moving.data, data)
        assert unlike, name
    assert np.array_equal(troubles.turned_over(task, 2).moving.data, data[:, :, ::-1])
    assert look_of(troubles.label_map(task).moving).flat == 1
    assert troubles.half_cut(task, 0).moving.data[:10].max() == 0
    field = troubles.smooth_rubbish((8, 9, 10), 2.0, 5.0)
    assert np.linalg.norm(field, axis=0).mean() == pytest.approx(5)


def test_pairs_of_a_set_are_made_coarse_with_their_labels(phantoms, monkeypatch):
    pair_set = PairSet("phantoms", phantoms.name, partial(ring, moving="*_t1"))
    coarse = quality_pairs.JudgedSet(pair_set, 0.5, coarse=True)
    monkeypatch.setitem(quality_pairs.SETS, "phantoms", coarse)
    ((name, pair),) = quality_pairs.pairs(phantoms.parent, "phantoms", 1)
    assert name == "a → b"
    for image, labels in (
        (pair.moving, pair.moving_labels),
        (pair.fixed, pair.fixed_labels),
    ):
        np.testing.assert_allclose(image.grid.spacing, quality_pairs.COARSE_MM)
        assert image.grid is labels.grid
        assert set(np.unique(labels.data)) == {0, 1, 2, 7}
    assert not pair.doomed

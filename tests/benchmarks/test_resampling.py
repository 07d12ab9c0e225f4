"""The benchmark of resampling, small, without asserting times."""

from __future__ import annotations

import json

import numpy as np
import pytest

import resampling
from pairs import BenchmarkError


def test_all_ways_agree_and_are_timed(bundle, results):
    arguments = ["--size", "40", "--runs", "1", "--model", str(bundle)]
    assert resampling.main([*arguments, "--threads", "1"]) == 0
    result = json.loads((results / "resampling.json").read_text(encoding="utf-8"))
    assert len(result["rows"]) == 10
    assert all(row["median_seconds"] > 0 and row["n"] == 1 for row in result["rows"])
    assert {row["by"] for row in result["rows"] if row["times_ours"] == 1} >= {resampling.OURS}
    page = (results / "resampling.md").read_text(encoding="utf-8")
    assert page == resampling.page(result, "resampling")


def test_way_that_gives_something_else_is_not_timed():
    image = np.random.default_rng(0).random((4, 5, 6)).astype(np.float32)
    inside = np.ones(image.shape, bool)
    inside[0] = False
    other = image.copy()
    other[0] += 1  # outside, where ways differ
    resampling.check("warp", {"ours": image, "other": other}, inside)
    other[2, 3, 4] += 0.01
    with pytest.raises(BenchmarkError, match=r"warp, other: expected what we get to 0.001, got"):
        resampling.check("warp", {"ours": image, "other": other}, inside)

"""Growth of time and memory at the smallest sizes; the pair that it is measured on."""

from __future__ import annotations

import json

import numpy as np
import pytest

import colin
import scaling
from pairs import mean_dice
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.warp import warp_volume


@pytest.mark.slow
def test_sizes_and_threads_are_measured(bundle, results):
    arguments = ["--model", str(bundle), "--engine", "onnxruntime:fp32", "--runs", "1"]
    arguments += ["--sizes", "24", "32", "--size", "24", "--threads", "1"]
    assert scaling.BENCHMARK.main(arguments) == 0
    result = json.loads((results / "scaling.json").read_text(encoding="utf-8"))
    assert [row["size"] for row in result["sizes"]] == [24, 32]
    assert [row["threads"] for row in result["threads"]] == [1]
    for row in (*result["sizes"], *result["threads"]):
        assert row["seconds"] > 0
        assert row["peak_mb"] > 50
    assert result["sizes"][0]["stages"]["start-up"] > 0
    page = (results / "scaling.md").read_text(encoding="utf-8")
    assert page == scaling.BENCHMARK.page(result, "scaling")
    assert "| 32 |" in page


@pytest.fixture(scope="module")
def colin_pair(tmp_path_factory):
    return colin.write_colin_pair(tmp_path_factory.mktemp("colin"), 64).load()


def test_cube_holds_all_of_the_brain_at_the_same_place(colin_pair):
    for volume in (colin_pair.moving, colin_pair.fixed):
        assert volume.grid.shape == (64, 64, 64)
        assert volume.grid.spacing.tolist() == [3.25, 3.25, 3.25]
        inside = volume.data[1:-1, 1:-1, 1:-1]
        assert inside.max() > 90
        assert volume.data.sum() == inside.sum()
    np.testing.assert_allclose(colin.cube(64).world([31.5] * 3), colin.MIDDLE)
    np.testing.assert_allclose(colin.cube(208).world([103.5] * 3), colin.MIDDLE)


def test_fixed_brain_is_the_moving_one_deformed(colin_pair):
    grid = colin.cube(64)
    found = []
    for vectors in (np.zeros((64, 64, 64, 3), np.float32), colin._deformation_mm(grid)):
        field = DisplacementField(grid, vectors)
        found.append(mean_dice(warp_volume(colin_pair.moving_labels, field, "nearest"), colin_pair))
    nothing, truth = found
    assert nothing < 0.5
    assert truth > 0.75  # labels of 3.25 mm voxels, by nearest neighbour twice

from __future__ import annotations

import numpy as np
import pytest

import affine as benchmark
from pairs import LabelledPair

from ..runtime.phantoms import centred_grid, head, head_labels, volume_of


@pytest.fixture
def pair() -> LabelledPair:
    grids = centred_grid("LAS", (46, 52, 40)), centred_grid("RAS", (54, 58, 50))
    moving, fixed = (volume_of(head, grid, "image") for grid in grids)
    labels = (volume_of(head_labels, grid) for grid in grids)
    return LabelledPair(moving, fixed, *labels)


def test_the_way_back_from_a_pose_is_found_and_the_way_nowhere_is_not(pair, monkeypatch):
    """One method undoes the pose, the other ignores it."""
    poses = []
    draw = benchmark.random_pose
    monkeypatch.setattr(benchmark, "random_pose", lambda *a: (poses.append(draw(*a)), poses[-1])[1])

    def undoes(moving, fixed):
        return (poses[-1][0] if poses else np.eye(4)), {"seconds": 1.0, "cpu_seconds": 1.0}

    def ignores(moving, fixed):
        return np.eye(4), {"seconds": 1.0, "cpu_seconds": 1.0}

    monkeypatch.setattr(benchmark, "METHODS", {"ours": undoes, "ANTs": ignores})
    rows = list(benchmark.measure(pair, poses=4, peer_poses=2, seed=0))
    benchmark.judge(rows)
    assert [row["method"] for row in rows].count("ANTs") == 3
    for row in rows:
        assert row["aligned"] == (row["method"] == "ours" or row["case"] == benchmark.AS_THEY_ARE)
        if row["method"] == "ours":
            assert row["off_mm"] == pytest.approx(0, abs=1e-9)
    cases = [
        (entry["case"], entry["method"], entry["aligned"]) for entry in benchmark.summarise(rows)
    ]
    assert cases == [
        (benchmark.AS_THEY_ARE, "ours", 1),
        (benchmark.AS_THEY_ARE, "ANTs", 1),
        (benchmark.POSED, "ours", 2),
        (benchmark.POSED, "ANTs", 0),
        (benchmark.CROPPED, "ours", 2),
        (benchmark.CROPPED, "ANTs", 0),
    ]


def test_a_cut_image_keeps_its_voxels_in_their_places(pair):
    cut = benchmark.cropped(pair.moving, np.random.default_rng(1))
    assert cut.data.size < pair.moving.data.size
    first = np.rint(np.linalg.inv(pair.moving.grid.affine) @ cut.grid.affine[:, 3])[:3].astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(first, cut.data.shape, strict=True))
    np.testing.assert_array_equal(cut.data, pair.moving.data[box])

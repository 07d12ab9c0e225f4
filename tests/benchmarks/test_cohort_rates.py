"""The benchmark of cohorts, small, without asserting times."""

from __future__ import annotations

import json

import cohort


def test_cohorts_give_what_single_calls_give(phantoms, bundle, results, monkeypatch):
    monkeypatch.setenv("PARAMORPH_MODEL", str(bundle))
    options = ["--pairs", "1", "--small", "2", "--single", "1", "--at-once", "1"]
    assert cohort.BENCHMARK.main([str(phantoms), *options, "--backend", "onnxruntime"]) == 0
    result = json.loads((results / "cohort.json").read_text(encoding="utf-8"))
    single, cohort_of_one, small = result["rows"]
    assert result["pairs"] == len(single["seconds"]) == 1
    for row, pairs in ((cohort_of_one, 1), (small, 2)):
        assert row["pairs"] == len(row["resident_mb"]) == pairs
        assert 50 < row["peak_mb"] < 2000
        assert row["growth_mb_per_100_pairs"] is None
    assert "| 2 | 3 |" in (results / "cohort.md").read_text(encoding="utf-8")

from __future__ import annotations

import json

import pytest

import startup
from record import BenchmarkError


def test_each_step_has_its_first_time_and_its_later_ones(bundle, results):
    arguments = ["--runs", "1", "--model", str(bundle), "--engines", "onnxruntime:fp32"]
    assert startup.BENCHMARK.main([*arguments, "--threads", "1"]) == 0
    result = json.loads((results / "startup.json").read_text(encoding="utf-8"))
    rows = {row["what"]: row for row in result["rows"]}
    assert list(rows) == ["--help", "importing Registration", "loading, onnxruntime:fp32"]
    for row in rows.values():
        assert row["n"] == len(row["seconds"]) == 1
        assert row["first_seconds"] > 0
        assert 0 < row["median_seconds"] <= row["most_seconds"]
    page = (results / "startup.md").read_text(encoding="utf-8")
    assert page == startup.BENCHMARK.page(result, "startup")


def test_a_step_that_fails_says_why():
    with pytest.raises(BenchmarkError, match=r"got .*ValueError: odd"):
        startup.python_seconds(["-c", "raise ValueError('odd')"], threads=1)

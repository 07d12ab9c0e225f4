"""A run that was stopped goes on where it was."""

from __future__ import annotations

import json

import pytest

from record import BenchmarkError, Rows, read_result
from tables import failures, origin


def started(resume: bool = False, **content) -> Rows:
    return Rows("made-up", {"threads": 2, "models": {"a": "1f"}, **content}, resume=resume)


def test_each_row_is_on_disk_at_once_and_taken_up_again_unless_it_failed(results):
    rows = started()
    rows.note({"pair": "p", "method": "x", "dice": 0.5})
    rows.note({"pair": "p", "method": "y", "error": "killed by SIGKILL"})
    found = json.loads((results / "made-up.json").read_text(encoding="utf-8"))
    assert [row["method"] for row in found["rows"]] == ["x", "y"]
    again = started(resume=True)
    assert again == [{"pair": "p", "method": "x", "dice": 0.5}]
    assert not again.without(pair="p", method="x")
    assert again.without(pair="p", method="y")
    result = read_result(again.write(summary={}))
    assert result["resumed_from"] == [found["commit"]]
    assert f"and rows of earlier runs at {found['commit']}" in origin(result)


def test_without_resume_all_is_measured_anew(results):
    started().note({"pair": "p"})
    assert started() == []


@pytest.mark.parametrize("other", [{"threads": 1}, {"models": {"a": "2e"}}])
def test_rows_of_other_threads_or_weights_are_not_mixed_in(results, other):
    started().note({"pair": "p"})
    with pytest.raises(BenchmarkError, match=r"expected a result of the same \w+ to go on with"):
        started(resume=True, **other)


def test_failures_are_listed_once_each():
    row = {"method": "x", "pair": "p", "error": "no"}
    assert failures([row, row, {"method": "y"}], "method", "pair").count("- x, p: no\n") == 1
    assert failures([{"method": "y"}], "method", "pair") == ""

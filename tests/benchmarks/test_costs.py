"""What metrics and pictures cost, small, without asserting times."""

from __future__ import annotations

import json

import pytest

import metrics
import pictures


def test_every_metric_is_timed(phantoms, results):
    assert metrics.BENCHMARK.main([str(phantoms), "--runs", "1", "--threads", "1"]) == 0
    result = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    assert result["labels"] == 3
    assert all(row["median_seconds"] >= 0 for row in result["rows"])
    page = (results / "metrics.md").read_text(encoding="utf-8")
    assert "54 × 58 × 50 voxels, 3 labels; medians." in page
    assert "| dice, one stage |" in page


def test_every_picture_is_drawn(phantoms, bundle, results, monkeypatch):
    for module in ("jinja2", "PIL", "contourpy"):
        pytest.importorskip(module, reason="needs the extra report")
    monkeypatch.setenv("PARAMORPH_MODEL", str(bundle))
    monkeypatch.setattr(pictures, "RUNS", 1)
    assert pictures.BENCHMARK.main([str(phantoms)]) == 0
    result = json.loads((results / "pictures.json").read_text(encoding="utf-8"))
    assert [row["what"] for row in result["rows"]] == list(pictures.PICTURES)
    assert all(row["kilobytes"] > 10 for row in result["rows"])
    assert "a → b, 3 labels; medians of 1." in (results / "pictures.md").read_text(encoding="utf-8")

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

import robustness
from pairs import labelled_pairs
from paramorph_rt import Registration
from paramorph_rt.images.volume import Volume
from robustness import summarise


def test_a_stored_orientation_changes_little_and_a_refused_pair_is_a_row(
    phantoms, bundle, monkeypatch
):
    def blank(image, labels):
        return Volume(np.zeros_like(image.data), image.grid, "blank"), labels

    troubles = {"stored as PIR": robustness.TROUBLES["stored as PIR"], "blank": blank}
    monkeypatch.setattr(robustness, "TROUBLES", troubles)
    pair = labelled_pairs(phantoms)[0].load()
    register = partial(Registration(bundle, 1), refine=0)
    usual, stored, refused = robustness.troubled(register, pair)
    assert usual["case"] == "as they are"
    assert usual["dice_affine"] == usual["dice_after"] > usual["dice_before"]
    assert stored["dice_after"] == pytest.approx(usual["dice_after"], abs=0.01)
    # The affine search adds in another order; a flipped axis would move corners by decimetres.
    assert 0 < stored["field_difference_mm"] < 2
    assert "expected an image with contrast" in refused["error"]


def test_summary_takes_means_and_the_worst():
    rows = [
        {"case": "x", "dice_after": 0.5, "ncc_after": 0.2, "field_difference_mm": 1.0},
        {"case": "x", "dice_after": 0.7, "ncc_after": 0.4, "field_difference_mm": 3.0},
        {"case": "x", "error": "no"},
        {"case": "y", "error": "no"},
    ]
    first, second = summarise(rows)
    assert (first["case"], first["pairs"], first["dice_after_worst"]) == ("x", 2, 0.5)
    assert first["dice_after"] == pytest.approx(0.6)
    assert first["ncc_after"] == pytest.approx(0.3)
    assert first["field_difference_mm"] == 3.0
    assert (second["pairs"], second["dice_after"], second["dice_after_worst"]) == (0, None, None)


def test_a_whole_run(phantoms, bundle, results, monkeypatch):
    monkeypatch.setattr(robustness, "TROUBLES", {})
    command = ["robustness.py", str(phantoms), "--first", "1"]
    command += ["--model", str(bundle), "--threads", "1"]
    monkeypatch.setattr("sys.argv", command)
    assert robustness.BENCHMARK.main() == 0
    path = results / "robustness-known-displacement.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    assert [row["case"] for row in result["rows"]] == 3 * ["as they are"]
    by = {row["setting"]: row["dice_after"] for row in result["rows"]}
    # The network answers with no displacement.
    for name in ("refined", "no network, refined"):
        assert by[name] > by["not refined"] + 0.02
    page = path.with_suffix(".md").read_text(encoding="utf-8")
    assert page.count("| as they are | 1 |") == 3
    assert "## Not refined\n" in page
    monkeypatch.setattr("sys.argv", [*command, "--resume"])
    monkeypatch.setattr(robustness, "measure", None)  # nothing is left to do
    assert robustness.BENCHMARK.main() == 0
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["rows"] == result["rows"]

from __future__ import annotations

import json

import numpy as np
import pytest

from evaluation import load_pair
from pairs import BenchmarkError, labelled_pairs
from paramorph_rt import Registration
from paramorph_rt.volume import Volume, save_labels, save_volume

from ..runtime.phantoms import centred_grid, head, head_labels, volume_of

pytest.importorskip("nilearn", reason="needs nilearn, of the extra benchmarks")
import robustness
from robustness import colin_to_mni, newborns, summarise


def test_a_stored_orientation_changes_little_and_a_refused_pair_is_a_row(
    phantoms, bundle, monkeypatch
):
    def blank(image, labels):
        return Volume(np.zeros_like(image.data), image.grid, "blank"), labels

    troubles = {"stored as PIR": robustness.TROUBLES["stored as PIR"], "blank": blank}
    monkeypatch.setattr(robustness, "TROUBLES", troubles)
    pair = load_pair(*labelled_pairs(phantoms)[0])
    usual, stored, refused = robustness.troubled(Registration(bundle, 1), pair)
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


def test_colin_and_mni_have_their_tissues_in_common_places():
    pair = colin_to_mni()
    for tissues in (pair.moving_labels, pair.fixed_labels):
        values, counts = np.unique(tissues.data, return_counts=True)
        litres = dict(
            zip(values.tolist(), counts * np.prod(tissues.grid.spacing) / 1e6, strict=True)
        )
        # An adult has about 0.7 l of grey and 0.5 l of white matter.
        assert set(litres) == {0, robustness.GREY, robustness.WHITE}
        assert 0.4 < litres[robustness.GREY] < 1.2
        assert 0.3 < litres[robustness.WHITE] < 1.0


def test_newborns_are_paired_within_and_across_contrasts(tmp_path):
    grid = centred_grid("RAS", (12, 13, 14), (4, 4, 4))
    for name in ("01", "02"):
        for kind in ("T1w_brain", "T2w_brain"):
            save_volume(tmp_path / f"{name}_{kind}.nii.gz", volume_of(head, grid))
        save_labels(tmp_path / f"{name}_Segmentation.nii.gz", volume_of(head_labels, grid))
    found = [(case, p.moving.name[:6], p.fixed.name[:6]) for case, p in newborns(tmp_path)]
    assert found == [
        ("newborn's T1 → another's T1", "01_T1w", "02_T1w"),
        ("newborn's T1 → another's T1", "02_T1w", "01_T1w"),
        ("newborn's T1 → another's T2", "01_T1w", "02_T2w"),
        ("newborn's T1 → another's T2", "02_T1w", "01_T2w"),
    ]


def test_a_folder_without_newborns_is_said(tmp_path):
    with pytest.raises(BenchmarkError, match="got 0; check --neonate"):
        list(newborns(tmp_path))


def test_a_whole_run(phantoms, bundle, results, tmp_path, monkeypatch):
    (tmp_path / "pairs.csv").write_text("moving,fixed\na,b\n", encoding="utf-8")
    monkeypatch.setattr(robustness, "TROUBLES", {})
    pair = load_pair(*labelled_pairs(phantoms)[0])
    monkeypatch.setattr(robustness, "colin_to_mni", lambda: pair)
    command = [str(phantoms), "--pairs", str(tmp_path / "pairs.csv"), "--model", str(bundle)]
    monkeypatch.setattr("sys.argv", ["robustness.py", *command])
    assert robustness.main() == 0
    result = json.loads(
        (results / "robustness-known-displacement.json").read_text(encoding="utf-8")
    )
    assert [row["case"] for row in result["rows"]] == ["as they are", "Colin27 → MNI152, tissues"]
    page = (results / "robustness-known-displacement.md").read_text(encoding="utf-8")
    assert "| as they are | 1 |" in page

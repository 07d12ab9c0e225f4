"""The benchmark of masks, small."""

from __future__ import annotations

import json

import masks
from paramorph_rt.images.volume import save_labels, save_volume

from ..runtime.phantoms import centred_grid, head, head_labels, volume_of


def test_pairs_are_measured_without_and_with_masks(bundle, results, tmp_path, capsys):
    assert masks.BENCHMARK.main([str(tmp_path), "--model", str(bundle)]) == 1
    assert "expected two *_t1.nii.gz or more, got 0" in capsys.readouterr().err
    for name, orientation in (("a", "LAS"), ("b", "PSR")):
        grid = centred_grid(orientation, (50, 54, 46))
        save_volume(tmp_path / f"{name}_t1.nii.gz", volume_of(head, grid))
        save_labels(tmp_path / f"{name}_labels.nii.gz", volume_of(head_labels, grid))
    assert masks.BENCHMARK.main([str(tmp_path), "--model", str(bundle)]) == 0
    result = json.loads((results / "masks.json").read_text(encoding="utf-8"))
    told = [(row["pair"], row["masks"]) for row in result["rows"]]
    kinds = ("none", "of the brains")
    assert told == [(p, k) for k in kinds for p in ("a → b", "b → a")] + [
        ("mean", k) for k in kinds
    ]
    page = (results / "masks.md").read_text(encoding="utf-8")
    assert page == masks.BENCHMARK.page(result, "masks")

"""The benchmark of masks, small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import masks
from paramorph_rt import Volume, load_labels, load_volume, save_labels, save_volume
from paramorph_rt.geometry.resample import resample_to_grid

COLIN27 = Path(__file__).parents[2] / "examples/colin27"


def test_pairs_are_measured_without_and_with_masks(bundle, results, tmp_path, capsys):
    assert masks.BENCHMARK.main([str(tmp_path), "--model", str(bundle)]) == 1
    assert "found none" in capsys.readouterr().err
    image, labels = load_volume(COLIN27 / "ch2bet.nii.gz"), load_labels(COLIN27 / "aal.nii.gz")
    grid = image.grid.with_shape([n // 4 for n in image.grid.shape])
    for name, voxels in (("a", 0), ("b", 1)):
        data = np.roll(resample_to_grid(image, grid), voxels, axis=1)
        save_volume(tmp_path / f"{name}_t1.nii.gz", Volume(data, grid, name))
        data = np.roll(resample_to_grid(labels, grid, None, "nearest"), voxels, axis=1)
        save_labels(tmp_path / f"{name}_labels.nii.gz", Volume(data, grid, name))
    assert masks.BENCHMARK.main([str(tmp_path), "--model", str(bundle)]) == 0
    result = json.loads((results / "masks.json").read_text(encoding="utf-8"))
    told = [(row["pair"], row["masks"]) for row in result["rows"]]
    kinds = masks.KINDS
    assert told == [(p, k) for k in kinds for p in ("a → b", "b → a")] + [
        ("mean", k) for k in kinds
    ]
    assert all((row["mask_dice"] or 0) > 0.8 for row in result["rows"] if row["masks"] == "--strip")
    page = (results / "masks.md").read_text(encoding="utf-8")
    assert page == masks.BENCHMARK.page(result, "masks")

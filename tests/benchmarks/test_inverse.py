"""The benchmark of inverses, small, without asserting times."""

from __future__ import annotations

import json

import inverse
from paramorph_rt.images.volume import save_volume

from ..runtime.phantoms import centred_grid, head, smooth_displacement_vox, volume_of, write_bundle


def test_all_inverses_are_judged_alike(results, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", smooth_displacement_vox())
    for name, orientation in (("moving", "LAS"), ("fixed", "oblique")):
        volume = volume_of(head, centred_grid(orientation, (50, 54, 46)), name)
        save_volume(tmp_path / f"{name}.nii.gz", volume)
    files = [
        word for n in ("moving", "fixed") for word in (f"--{n}", str(tmp_path / f"{n}.nii.gz"))
    ]
    assert inverse.BENCHMARK.main([*files, "--model", str(bundle), "--threads", "1"]) == 0
    result = json.loads((results / "inverse.json").read_text(encoding="utf-8"))
    ours, *theirs = result["rows"]
    assert len(theirs) == len(inverse.ITK)
    assert ours["from_moving_mean_mm"] < 0.02
    assert all(row["from_moving_mean_mm"] < 1 for row in theirs)
    assert all(ours["from_fixed_mean_mm"] <= row["from_fixed_mean_mm"] + 0.02 for row in theirs)
    page = (results / "inverse.md").read_text(encoding="utf-8")
    assert page == inverse.BENCHMARK.page(result, "inverse")

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from paramorph_rt.cli import main
from paramorph_rt.cohort import work
from paramorph_rt.cohort.run import run_cohort
from paramorph_rt.errors import BundleError
from paramorph_rt.images.volume import save_volume
from paramorph_rt.request import Options

from ..phantoms import centred_grid, head, volume_of
from .cohorts import A_TO_B, Page, a_to_b, cohort, statuses, write_table


def test_template_and_all_pairs(subjects, zero_bundle_path, tmp_path):
    template = ["--template", subjects / "b_t1.nii.gz", "--images", subjects]
    template += ["--template-labels", subjects / "b_labels.nii.gz"]
    assert cohort(zero_bundle_path, tmp_path / "one", *template) == 0
    assert set(statuses(tmp_path / "one")) == {"a_t1", "c_t1"}
    assert cohort(zero_bundle_path, tmp_path / "all", "--all-pairs", subjects) == 0
    names = {f"{m}_t1_to_{f}_t1" for m in "abc" for f in "abc" if m != f}
    assert set(statuses(tmp_path / "all")) == names
    for place in ("one/pairs/a_t1", "all/pairs/a_t1_to_b_t1"):
        metrics = json.loads((tmp_path / place / "metrics.json").read_text(encoding="utf-8"))
        assert (metrics["moving"], metrics["fixed"]) == ("a_t1.nii.gz", "b_t1.nii.gz")
        assert "dice" in metrics


def test_pair_gets_what_infer_gives(subjects, zero_bundle_path, tmp_path):
    header, mask = "name,moving,fixed,also,fixed_mask", "b_labels.nii.gz"
    table = write_table(subjects, f"{header}\nx,{A_TO_B},c_t1.nii.gz,{mask}\n")
    options = ["--interpolation", "bspline", "--inverse", "--output-grid", "moving"]
    assert cohort(zero_bundle_path, tmp_path / "out", table, *options) == 0
    one = ["--moving", subjects / "a_t1.nii.gz", "--fixed", subjects / "b_t1.nii.gz"]
    one += ["--also", subjects / "c_t1.nii.gz", "--out-dir", tmp_path / "one"]
    one += ["--fixed-mask", subjects / mask]
    one += ["--model", zero_bundle_path, "--backend", "onnxruntime", "--no-affine", *options]
    assert main(["infer", *map(str, one)]) == 0
    files = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*")}
    pair = tmp_path / "out/pairs/x"
    assert {str(p.relative_to(pair)) for p in pair.rglob("*")} == files | {"record.json"}
    for name in files:
        if name.endswith(".nii.gz"):
            ours, theirs = (nib.load(p / name) for p in (pair, tmp_path / "one"))
            np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
            np.testing.assert_array_equal(ours.affine, theirs.affine)


def test_bids_names_make_one_dataset_of_all_pairs(subjects, zero_bundle_path, tmp_path, capsys):
    for name in "ab":
        (subjects / f"{name}_t1.nii.gz").rename(subjects / f"sub-{name}_T1w.nii.gz")
    rows = "one,sub-a_T1w.nii.gz,c_t1.nii.gz\ntwo,sub-b_T1w.nii.gz,c_t1.nii.gz\n"
    table = write_table(subjects, f"name,moving,fixed\n{rows}")
    out, options = tmp_path / "out", ["--bids-names", "--report"]
    assert cohort(zero_bundle_path, out, table, *options) == 0
    one = ["--moving", subjects / "sub-a_T1w.nii.gz", "--fixed", subjects / "c_t1.nii.gz"]
    one += ["--model", zero_bundle_path, "--backend", "onnxruntime", "--no-affine", *options]
    assert main(["infer", *map(str, one), "--out-dir", str(tmp_path / "one")]) == 0
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    alone = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*.*")}
    way = "sub-{0}/anat/sub-{0}_from-T1w_to-ct1_mode-image"
    assert f"{way.format('a')}_report.html" in alone
    theirs = {name.replace("sub-a", "sub-b") for name in alone}
    records = {f"{way.format(name)}_record.json" for name in "ab"}
    summaries = {f"summary.{ending}" for ending in ("csv", "json", "html")}
    assert files == alone | theirs | records | summaries
    page = Page((out / "summary.html").read_text(encoding="utf-8"))
    assert {link for link in page.links if link} == {
        f"{way.format(name)}_report.html" for name in "ab"
    }
    capsys.readouterr()
    assert cohort(zero_bundle_path, out, table, *options) == 0
    assert set(statuses(out).values()) == {"kept"}
    (out / f"{way.format('b')}_metrics.json").unlink()
    assert cohort(zero_bundle_path, out, table, *options) == 0
    assert statuses(out) == {"one": "kept", "two": "done"}


def test_pairs_with_the_same_bids_names_are_refused_before_anything_runs(
    subjects, zero_bundle_path, tmp_path, capsys
):
    table = write_table(subjects, f"name,moving,fixed\none,{A_TO_B}\ntwo,{A_TO_B}\n")
    assert cohort(zero_bundle_path, tmp_path / "out", table, "--bids-names") == 1
    assert "two: expected BIDS names of its own, got sub-at1/anat" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_series_is_warped_in_each_pair(subjects, zero_bundle_path, tmp_path):
    image = nib.load(subjects / "a_t1.nii.gz")
    series = np.stack([image.get_fdata() * scale for scale in (1, 2, 3)], axis=-1)
    nib.save(nib.Nifti1Image(series.astype(np.float32), image.affine), subjects / "bold.nii.gz")
    table = write_table(subjects, "moving,fixed\nbold.nii.gz,b_t1.nii.gz\n")
    out, options = tmp_path / "out", ["--apply-to-all", "--reference-volume", "1"]
    assert cohort(zero_bundle_path, out, table, *options) == 0
    pair = out / "pairs/bold_to_b_t1"
    warped = nib.load(pair / "warped.nii.gz").get_fdata()
    volumes = nib.load(pair / "warped_series.nii.gz").get_fdata()
    np.testing.assert_allclose(volumes[..., 1], warped, atol=1e-4)
    np.testing.assert_allclose(volumes[..., 2], 1.5 * warped, atol=1e-3)
    assert cohort(zero_bundle_path, out, table, *options) == 0
    assert statuses(out) == {"bold_to_b_t1": "kept"}
    options[-1] = "0"
    assert cohort(zero_bundle_path, out, table, *options) == 0
    assert statuses(out) == {"bold_to_b_t1": "done"}


def test_failing_pair_is_reported_and_the_others_go_on(
    subjects, zero_bundle_path, tmp_path, capsys
):
    (subjects / "bad.nii").write_text("no image", encoding="utf-8")
    rows = f"a,{A_TO_B}\nbad,bad.nii,b_t1.nii.gz\nc,c_t1.nii.gz,a_t1.nii.gz\n"
    table = write_table(subjects, f"name,moving,fixed\n{rows}")
    assert cohort(zero_bundle_path, tmp_path / "out", table) == 1
    captured = capsys.readouterr()
    assert statuses(tmp_path / "out") == {"bad": "failed", "a": "done", "c": "done"}
    assert "bad failed: bad.nii: expected" in captured.err
    last = captured.err.strip().splitlines()[-1]
    assert "expected results of 3 pairs, got 2, as bad failed" in last
    assert not (tmp_path / "out/pairs/bad").exists()
    save_volume(subjects / "bad.nii", volume_of(head, centred_grid("RAS", (30, 30, 30))))
    assert cohort(zero_bundle_path, tmp_path / "out", table) == 0
    assert statuses(tmp_path / "out") == {"bad": "done", "a": "kept", "c": "kept"}


def test_missing_file_fails_its_pair_alone_unless_strict(
    subjects, zero_bundle_path, tmp_path, capsys
):
    rows = f"a,{A_TO_B}\nlost,none.nii,b_t1.nii.gz\n"
    table = write_table(subjects, f"name,moving,fixed\n{rows}")
    assert cohort(zero_bundle_path, tmp_path / "strict", table, "--strict") == 1
    assert "line 3: expected a file as moving, found none at" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()
    assert cohort(zero_bundle_path, tmp_path / "out", table) == 1
    error = capsys.readouterr().err
    assert "lost failed: lost: expected a file as moving, found none at" in error
    assert "expected results of 2 pairs, got 1, as lost failed" in error.splitlines()[-1]
    assert statuses(tmp_path / "out") == {"lost": "failed", "a": "done"}
    assert "found none at" in (tmp_path / "out/summary.html").read_text(encoding="utf-8")
    save_volume(subjects / "none.nii", volume_of(head, centred_grid("RAS", (30, 30, 30))))
    assert cohort(zero_bundle_path, tmp_path / "out", table) == 0
    assert statuses(tmp_path / "out") == {"lost": "done", "a": "kept"}


def test_defect_in_one_pair_does_not_stop_the_others(subjects, options, tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(work, "_run_pair", broken)
    pairs = [a_to_b(subjects, n) for n in "xy"]
    outcomes = list(run_cohort(pairs, options, tmp_path / "out"))
    assert {(o.status, o.note) for o in outcomes} == {
        ("failed", f"{name}: expected a registration, got ZeroDivisionError: broken.")
        for name in "xy"
    }


def test_model_that_cannot_be_loaded_is_one_error(subjects, tmp_path):
    pairs = [a_to_b(subjects, "x")]
    with pytest.raises(BundleError, match="expected a bundle"):
        next(run_cohort(pairs, Options(model=tmp_path), tmp_path / "out"))

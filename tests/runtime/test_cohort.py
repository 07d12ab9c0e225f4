from __future__ import annotations

import csv
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from paramorph_rt import Registration, RegistrationResult, loaded
from paramorph_rt.cli import main
from paramorph_rt.cohort import run as cohort_run
from paramorph_rt.cohort import work
from paramorph_rt.cohort.pairs import (
    Pair,
    pairs_of_table,
)
from paramorph_rt.cohort.run import run_cohort
from paramorph_rt.cohort.summary import statistics_of, write_summary
from paramorph_rt.cohort.work import Outcome
from paramorph_rt.errors import BundleError, CohortError
from paramorph_rt.images.volume import save_labels, save_volume
from paramorph_rt.request import Inputs, Options
from paramorph_rt.results.provenance import content_hash

from .phantoms import NETWORK_SHAPE, centred_grid, head, head_labels, volume_of
from .test_cli import run_python

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}


@pytest.fixture
def subjects(tmp_path) -> Path:
    """Three subjects with labels."""
    folder = tmp_path / "subjects"
    folder.mkdir()
    for number, name in enumerate("abc"):
        grid = centred_grid("RAS", (30, 34, 28), (1.5, 1.5, 1.5), (number, 0, 0))
        save_volume(folder / f"{name}_t1.nii.gz", volume_of(head, grid))
        save_labels(folder / f"{name}_labels.nii.gz", volume_of(head_labels, grid))
    return folder


def a_to_b(subjects: Path, name: str) -> Pair:
    return Pair(name, Inputs(subjects / "a_t1.nii.gz", subjects / "b_t1.nii.gz"))


@pytest.fixture
def options(zero_bundle_path) -> Options:
    return Options(model=zero_bundle_path, backend="onnxruntime", threads=1, affine="none")


def cohort(model: Path, out: Path, *words: object) -> int:
    options = ["--model", model, "--out-dir", out, "--backend", "onnxruntime", "--threads", 1]
    return main(["cohort", *map(str, [*words, *options]), "--no-affine"])


def write_table(folder: Path, text: str | bytes) -> Path:
    table = folder / "pairs.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return table


def statuses(out: Path) -> dict[str, str]:
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return {entry["name"]: entry["status"] for entry in summary["results"]}


def inodes(out: Path) -> dict[str, int]:
    """Of each finished pair's metrics; a pair that is done again gets another."""
    return {path.parent.name: path.stat().st_ino for path in out.glob("pairs/[!.]*/metrics.json")}


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_table_with_all_columns(subjects, separator, mark):
    header = ["name", "moving", "fixed", "moving_labels", "fixed_labels", "moving_mask", "also"]
    row = ["Ü 1", "a_t1.nii.gz", str(subjects / "b_t1.nii.gz"), "a_labels.nii.gz"]
    row += ["b_labels.nii.gz", "c_labels.nii.gz", "a_t1.nii.gz | c_t1.nii.gz"]
    lines = [separator.join([*header, "age"]), separator.join([*row, "61"]), "", separator * 7]
    table = write_table(subjects, mark + "\r\n".join(lines).encode())
    (pair,) = pairs_of_table(table)
    assert pair == Pair(
        "Ü 1",
        Inputs(
            subjects / "a_t1.nii.gz",
            subjects / "b_t1.nii.gz",
            moving_labels=subjects / "a_labels.nii.gz",
            fixed_labels=subjects / "b_labels.nii.gz",
            moving_mask=subjects / "c_labels.nii.gz",
            also=(subjects / "a_t1.nii.gz", subjects / "c_t1.nii.gz"),
        ),
        notes=(("age", "61"),),
    )


A_TO_B = "a_t1.nii.gz,b_t1.nii.gz"
BAD_TABLES = {
    "empty": ("", "line 1: expected the columns moving and fixed, got none"),
    "header alone": ("moving,fixed\n", "expected a pair on each line, got none"),
    "no header": (f"{A_TO_B}\n", "line 1: expected the columns moving and fixed, got a_t1"),
    "column missing": ("moving,age\nx,1\n", "line 1: expected the columns moving and fixed, got"),
    "column twice": ("moving,fixed,moving\n", "line 1: expected each column once, got moving 2"),
    "almost a column": (
        f"moving,fixed,Moving label\n{A_TO_B},x\n",
        '"Moving label", which is nearly "moving_labels"',
    ),
    "short line": (f"moving,fixed\n{A_TO_B}\na_t1.nii.gz\n", "line 3: expected 2 cells"),
    "long line": (f"moving,fixed\n{A_TO_B},x\n", "line 2: expected 2 cells .* got 3"),
    "empty cell": ("moving,fixed\na_t1.nii.gz,\n", "line 2: expected a file as fixed, got none"),
    "no pair whose files are there": (
        "moving,fixed\nnone.nii,b_t1.nii.gz\nnone.nii,a_t1.nii.gz\n",
        r"line 2: expected a file as moving, found none at .*/none\.nii \(and 1 more\)",
    ),
    "same pair twice": (
        f"moving,fixed\n{A_TO_B}\n{A_TO_B}\n",
        "line 3: expected a name of its own for each pair, got a_t1_to_b_t1 as for .* line 2",
    ),
    "names that one folder cannot tell": (
        f"name,moving,fixed\nx,{A_TO_B}\nX,{A_TO_B}\n",
        "line 3: expected a name of its own for each pair, got X",
    ),
    "slash": (f"name,moving,fixed\na/b,{A_TO_B}\n", "line 2: expected a name that can be"),
    "parent": (f"name,moving,fixed\n..,{A_TO_B}\n", "line 2: expected a name that can be"),
    "line break in a name": (
        f'name,moving,fixed\n"a\nb",{A_TO_B}\n',
        r"line 3: expected a name that can be a folder's, got 'a\\nb'",
    ),
    "long name": (f"name,moving,fixed\n{'x' * 201},{A_TO_B}\n", "line 2: .* at most 200 bytes"),
    "fixed labels alone": (
        f"moving,fixed,fixed_labels\n{A_TO_B},b_labels.nii.gz\n",
        "line 2: expected moving_labels to compare fixed_labels with",
    ),
    "Latin-1": (
        f"moving,fixed\n{A_TO_B}\né,b\n".encode("latin-1"),
        "line 3: expected UTF-8 .*0xe9",
    ),
    "UTF-16": ("moving,fixed\n".encode("utf-16"), "line 1: expected UTF-8 text, got the byte 0xff"),
    "null byte": (f"moving,fixed\n{A_TO_B}\n\0,b\n", "line 3: expected text, got a null byte"),
    "open quote": (f'moving,fixed\n"{A_TO_B}\n', "line 2: expected 2 cells"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_table_is_one_sentence_before_anything_runs(
    subjects, zero_bundle_path, tmp_path, capsys, case
):
    text, match = BAD_TABLES[case]
    with pytest.raises(CohortError, match=match):
        pairs_of_table(write_table(subjects, text))
    assert cohort(zero_bundle_path, tmp_path / "out", subjects / "pairs.csv") == 1
    error = capsys.readouterr().err
    assert error.startswith("paramorph-rt: ")
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_table_that_is_not_there(zero_bundle_path, tmp_path, capsys):
    assert cohort(zero_bundle_path, tmp_path / "out", tmp_path / "none.csv") == 1
    assert "none.csv: expected a CSV table, found none" in capsys.readouterr().err


# --- results --------------------------------------------------------------------------------------


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


# --- restarts -------------------------------------------------------------------------------------


def run(pair: Pair, options: Options, out: Path, **more: bool) -> tuple[str, str]:
    (outcome,) = run_cohort([pair], options, out, **more)
    return outcome.status, outcome.note


@pytest.fixture
def pair(subjects) -> Pair:
    return a_to_b(subjects, "x")


def test_finished_pair_is_known_by_content(pair, options, subjects, tmp_path):
    out = tmp_path / "out"
    assert run(pair, options, out) == ("done", "")
    before = inodes(out)
    assert run(pair, options, out) == ("kept", "")
    moved = tmp_path / "moved.nii.gz"
    moved.write_bytes(pair.inputs.moving.read_bytes())
    elsewhere = Pair("x", Inputs(moved, pair.inputs.fixed))
    assert run(elsewhere, options, out) == ("kept", "")
    assert inodes(out) == before
    other = Pair("x", Inputs(subjects / "c_t1.nii.gz", pair.inputs.fixed))
    assert run(other, options, out) == ("done", "changed since: inputs moving")
    pair.inputs.fixed.write_bytes((subjects / "c_t1.nii.gz").read_bytes())
    assert run(other, options, out) == ("done", "changed since: inputs fixed")
    assert run(other, options, out, force=True) == ("done", "")


def test_other_options_model_and_versions_are_other_results(
    pair, options, bundle_path, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    run(pair, options, out)
    inverse = replace(options, inverse=True)
    assert run(pair, inverse, out) == ("done", "changed since: options inverse")
    threads = replace(options, threads=2, inverse=True)
    assert run(pair, threads, out) == ("kept", "")
    model = replace(options, model=bundle_path, inverse=True)
    assert run(pair, model, out) == ("done", "changed since: model sha256 registration.onnx")
    versions = {"paramorph-rt": "99"}
    monkeypatch.setattr("paramorph_rt.results.provenance.installed_versions", lambda: versions)
    assert "software paramorph-rt" in run(pair, model, out)[1]
    grid = replace(options, model=bundle_path, output_grid=str(pair.inputs.moving))
    assert "inputs output_grid, options inverse, options output_grid" in run(pair, grid, out)[1]


def test_composite_is_written_where_the_earlier_run_had_none(pair, options, tmp_path):
    out, composite = tmp_path / "out", replace(options, itk_composite=True)
    run(pair, options, out)
    assert run(pair, composite, out) == ("done", "composite.h5 was not requested")
    assert run(pair, composite, out) == run(pair, options, out) == ("kept", "")


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (lambda f: (f / "warped.nii.gz").unlink(), "warped.nii.gz is missing or of another size"),
        (
            lambda f: (f / "affine.tfm").write_text("half", encoding="utf-8"),
            "affine.tfm is missing or of another",
        ),
        (lambda f: (f / "record.json").unlink(), "it was not finished"),
        (
            lambda f: (f / "record.json").write_text('{"form', encoding="utf-8"),
            "it was not finished",
        ),
        (lambda f: (f / "record.json").write_text("[]", encoding="utf-8"), "it was not finished"),
        (
            lambda f: (f / "record.json").write_text('{"format_version": 1}', encoding="utf-8"),
            "its record is of another format",
        ),
    ],
)
def test_half_written_pair_is_done_again(pair, options, tmp_path, spoil, note):
    out = tmp_path / "out"
    run(pair, options, out)
    (out / "pairs/x/mine.txt").write_text("stays", encoding="utf-8")
    spoil(out / "pairs/x")
    status, said = run(pair, options, out)
    assert status == "done"
    assert said.startswith(note)
    assert run(pair, options, out) == ("kept", "")
    assert (out / "pairs/x/mine.txt").read_text(encoding="utf-8") == "stays"


def test_crash_while_replacing_leaves_no_record(pair, options, subjects, tmp_path, monkeypatch):
    """Some files are new and others old then: nothing may vouch for them."""
    out = tmp_path / "out"
    run(pair, options, out)
    real = Path.replace

    def crash(self: Path, target: Path) -> Path:
        if target.name == "displacement.nii.gz" and ".paramorph" not in target.parent.name:
            raise OSError(5, "Input/output error")
        return real(self, target)

    other = Pair("x", Inputs(subjects / "c_t1.nii.gz", pair.inputs.fixed))
    monkeypatch.setattr(Path, "replace", crash)
    told = run(other, options, out)
    assert told[0] == "failed"
    monkeypatch.undo()
    assert not (out / "pairs/x/record.json").exists(), told
    # The next run first finishes the move, whose results are of another image.
    status, note = run(pair, options, out)
    assert status == "done"
    assert "inputs" in note


@pytest.mark.parametrize(
    ("kind", "name"), [(Registration, "register"), (RegistrationResult, "save")]
)
def test_pair_that_another_process_finishes_meanwhile_is_kept(
    pair, options, tmp_path, monkeypatch, kind, name
):
    out, real, found = tmp_path / "out", getattr(kind, name), {}

    def overtaken(*given, **named):
        result = real(*given, **named)
        monkeypatch.setattr(kind, name, real)
        assert work.run_pair(pair, options, out).status == "done"
        found.update(inodes(out))
        return result

    monkeypatch.setattr(kind, name, overtaken)
    assert run(pair, options, out) == ("kept", "")
    assert inodes(out) == found
    assert [path.name for path in (out / "pairs").iterdir()] == ["x"]


def test_pictures_are_drawn_when_they_are_asked_for(subjects, zero_bundle_path, tmp_path):
    for module in ("jinja2", "PIL", "contourpy"):
        pytest.importorskip(module, reason="needs the extra report")
    out, table = tmp_path / "out", long_table(subjects, 1)
    assert cohort(zero_bundle_path, out, table) == 0
    assert cohort(zero_bundle_path, out, table, "--report") == 0
    assert statuses(out) == {"p00": "done"}
    links = Page((out / "summary.html").read_text(encoding="utf-8")).links
    assert set(links) == {"pairs/p00/report.html"}
    assert (out / "pairs/p00/report.html").is_file()
    assert cohort(zero_bundle_path, out, table) == 0
    assert statuses(out) == {"p00": "kept"}


def test_leftovers_of_killed_runs_are_swept_away(pair, options, tmp_path):
    out = tmp_path / "out"
    run(pair, options, out)
    for leftover in (out / "pairs/.paramorph-1", out / "pairs/x/.paramorph-2"):
        leftover.mkdir()
        (leftover / "warped.nii.gz").write_text("half", encoding="utf-8")
        os.utime(leftover, (0, 0))
    young = out / "pairs/.paramorph-3"  # as of another process that writes just now
    young.mkdir()
    assert run(pair, options, out) == ("kept", "")
    assert young.is_dir()
    young.rmdir()
    assert not [*out.glob("pairs/.paramorph-*"), *out.glob("pairs/*/.paramorph-*")]


def test_content_of_folders_and_detached_files(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series/1.dcm").write_text("1", encoding="utf-8")
    for name in ("a.mhd", "a.raw", "ab.raw"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    before = [content_hash(tmp_path / name) for name in ("series", "a.mhd")]
    (tmp_path / "ab.raw").write_text("another image's", encoding="utf-8")
    assert before == [content_hash(tmp_path / name) for name in ("series", "a.mhd")]
    (tmp_path / "series/2.dcm").write_text("2", encoding="utf-8")
    (tmp_path / "a.raw").write_text("changed", encoding="utf-8")
    after = [content_hash(tmp_path / name) for name in ("series", "a.mhd")]
    assert before[0] != after[0]
    assert before[1] != after[1]


# --- running --------------------------------------------------------------------------------------


def test_one_model_load_and_one_network_at_a_time(subjects, options, tmp_path, monkeypatch):
    loads, running, most = [], [], []

    class Slow:
        name, precision, shapes = "slow", "fp32", (NETWORK_SHAPE,)

        def __init__(self) -> None:
            loads.append(threading.get_ident())

        def run(self, moving, fixed):
            running.append(threading.get_ident())
            most.append(len(running))
            assert running == loads  # in the thread that loaded it
            time.sleep(0.05)
            running.pop()
            return np.zeros((3, *fixed.shape), np.float32)

    monkeypatch.setattr(loaded, "choose_backend", lambda *_: Slow())
    loaded._load.cache_clear()
    pairs = [a_to_b(subjects, str(n)) for n in range(6)]
    outcomes = list(run_cohort(pairs, options, tmp_path / "out", at_once=3))
    loaded._load.cache_clear()
    assert [outcome.status for outcome in outcomes] == ["done"] * 6
    assert (len(loads), max(most)) == (1, 1)


def test_pairs_at_once_are_bounded(subjects, options, tmp_path, monkeypatch):
    lock, counts = threading.Lock(), [0, 0]

    def slow(pair: Pair, **_: object) -> Outcome:
        with lock:
            counts[0] += 1
            counts[1] = max(counts)
        time.sleep(0.02)
        with lock:
            counts[0] -= 1
        return Outcome(pair.name, "done")

    monkeypatch.setattr(cohort_run, "run_pair", slow)
    pairs = [a_to_b(subjects, str(n)) for n in range(12)]
    outcomes = list(run_cohort(pairs, options, tmp_path / "out", at_once=4))
    assert sorted(outcome.name for outcome in outcomes) == sorted(pair.name for pair in pairs)
    assert counts[1] == 4


def test_warnings_belong_to_their_pair(subjects, options, tmp_path, monkeypatch):
    real, barrier = work._run_pair, threading.Barrier(2)

    def warn(pair: Pair, *rest: object) -> object:
        barrier.wait(10)
        logging.getLogger("paramorph_rt.steps.affine").warning("%s looks odd", pair.name)
        barrier.wait(10)
        return real(pair, *rest)

    monkeypatch.setattr(work, "_run_pair", warn)
    pairs = [a_to_b(subjects, n) for n in "xy"]
    outcomes = list(run_cohort(pairs, options, tmp_path / "out", at_once=2))
    assert {o.name: o.warnings for o in outcomes} == {n: (f"{n} looks odd",) for n in "xy"}
    record = json.loads((tmp_path / "out/pairs/x/record.json").read_text(encoding="utf-8"))
    assert record["warnings"] == ["x looks odd"]


# --- interruption ---------------------------------------------------------------------------------


def long_table(subjects: Path, count: int) -> Path:
    rows = "".join(f"p{n:02},{A_TO_B}\n" for n in range(count))
    return write_table(subjects, f"name,moving,fixed\n{rows}")


def test_ctrl_c_finishes_what_is_under_way_and_a_restart_goes_on(
    subjects, zero_bundle_path, tmp_path
):
    out, table = tmp_path / "out", long_table(subjects, 24)
    words = ["cohort", table, "--out-dir", out, "--model", zero_bundle_path, "--no-affine"]
    words += ["--backend", "onnxruntime", "--threads", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "paramorph_rt", *map(str, words)],
        env={**os.environ, **ENVIRONMENT},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    wait_until(lambda: len(inodes(out)) >= 2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "finishing the pairs under way" in error
    assert "Traceback" not in error
    finished = inodes(out)
    assert 2 <= len(finished) < 24
    assert not list(out.glob("pairs/.paramorph-*"))
    said = statuses(out)
    assert {name for name, status in said.items() if status == "done"} == set(finished)
    assert set(said.values()) == {"done", "not run"}
    assert cohort(zero_bundle_path, out, table) == 0
    assert inodes(out).items() >= finished.items()
    assert sorted(statuses(out).values()) == ["done"] * (24 - len(finished)) + ["kept"] * len(
        finished
    )


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


# --- cluster --------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path):
    """A scheduler's address, and two worker processes of one thread."""
    pytest.importorskip("distributed", reason="needs the extra cluster")
    programs = []

    def start(*words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "distributed.cli." + words[0], *words[1:]]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        programs.append(process)
        return process

    file = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    start("dask_scheduler", *options, "--scheduler-file", str(file))
    wait_until(file.exists)
    address = json.loads(file.read_text(encoding="utf-8"))["address"]
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
    workers = [start("dask_worker", address, *options) for _ in range(2)]
    yield address, workers
    for process in programs:
        process.kill()
        process.wait()


def test_killed_worker_loses_nothing_and_does_nothing_twice(
    cluster, subjects, zero_bundle_path, tmp_path
):
    address, workers = cluster
    out, table = tmp_path / "out", long_table(subjects, 24)
    before_the_kill = {}

    def kill() -> None:
        both_work = lambda: len(set(processes(out).values())) == 2  # noqa: E731
        wait_until(lambda: both_work() and len(inodes(out)) >= 6, seconds=300)
        workers[0].kill()
        workers[0].wait()
        before_the_kill.update(inodes(out))

    killer = threading.Thread(target=kill)
    killer.start()
    code = cohort(zero_bundle_path, out, table, "--scheduler", address)
    killer.join()
    assert code == 0
    assert 6 <= len(before_the_kill) < 24, "killed too late to tell"
    assert len(inodes(out)) == 24
    assert inodes(out).items() >= before_the_kill.items()
    assert {p.poll() for p in workers} == {-signal.SIGKILL, None}
    # One interpreter each: what a worker did, it did with its one model.
    assert len(set(processes(out).values())) == 2
    again = cohort(zero_bundle_path, out, table, "--scheduler", address)
    assert (again, set(statuses(out).values())) == (0, {"kept"})


def processes(out: Path) -> dict[str, int]:
    """Which process registered each finished pair."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in out.glob("pairs/[!.]*/record.json")
    ]
    return {record["name"]: record["process"] for record in records}


def test_no_scheduler_is_one_sentence(subjects, options, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason="needs the extra cluster")
    monkeypatch.setattr(cohort_run, "CONNECT_SECONDS", 0.2)
    pairs = [a_to_b(subjects, "x")]
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(CohortError, match=f"{address}: expected a Dask scheduler"):
            next(run_cohort(pairs, options, tmp_path / "out", scheduler=address))


class Workers:
    """A client of workers whose versions are these."""

    def __init__(self, *versions: dict[str, str] | Exception) -> None:
        self._versions = versions

    def run(self, function) -> dict[str, dict[str, str]]:
        for found in self._versions:
            if isinstance(found, Exception):
                raise found
        return dict(zip("ab", self._versions, strict=False))


def test_workers_must_have_the_same_software():
    old, new = {"numpy": "2.3", "openvino": "2025.0"}, {"numpy": "2.3", "openvino": "2026.4"}
    cohort_run._check_versions(Workers(new, new), "tcp://x:1")
    cohort_run._check_versions(Workers(), "tcp://x:1")
    with pytest.raises(CohortError, match=r"same software .* got openvino 202\d.\d and 202\d"):
        cohort_run._check_versions(Workers(old, new), "tcp://x:1")
    missing = ModuleNotFoundError("No module named 'paramorph_rt'")
    with pytest.raises(CohortError, match="expected workers that have paramorph-rt, got Module"):
        cohort_run._check_versions(Workers(missing), "tcp://x:1")


# --- summary --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would fetch, run or be confused by."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("href", "src"):
                self.links.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


EVIL = '<script>alert("x")&amp;'


def test_summary_escapes_names_and_needs_no_network(subjects, zero_bundle_path, tmp_path):
    (subjects / "bad.nii").write_text("no image", encoding="utf-8")
    name = EVIL.replace("/", "").replace('"', '""')
    table = write_table(
        subjects,
        f'name,moving,fixed,moving_labels,fixed_labels\n"{name}",{A_TO_B},a_labels.nii.gz,'
        f'b_labels.nii.gz\n"{name}2",bad.nii,b_t1.nii.gz,,\n',
    )
    assert cohort(zero_bundle_path, tmp_path / "out", table) == 1
    text = (tmp_path / "out/summary.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("script") == 1
    assert page.links == []
    assert not any(word in text for word in ("http:", "https:", "url(", "@import"))
    assert EVIL.replace("/", "") in page.words
    assert any(word.startswith("failed: bad.nii: expected") for word in page.words)


def test_summary_has_the_worst_first(tmp_path):
    scores = {"middle": 0.5, "worst": 0.25, "best": 0.75, "odd": None}
    inputs = Inputs(Path("m"), Path("f"))
    pairs = [Pair(name, inputs, notes=(("site", "A"),)) for name in scores]
    pairs += [Pair("failed", inputs), Pair("waiting", inputs)]
    outcomes = {"failed": Outcome("failed", "failed", "f: expected x, got y; do z.")}
    for name, score in scores.items():
        folder = tmp_path / "pairs" / name
        folder.mkdir(parents=True)
        dice = {"after": {"mean": score, "labels": {"7": 0.1}}}
        metrics = {"dice": dice, "ncc": {"before": None}, "backend": "x", "seconds": {"load": 2}}
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        (folder / "record.json").write_text('{"warnings": ["look at it"]}', encoding="utf-8")
        outcomes[name] = Outcome(name, "done")
    summary = write_summary(tmp_path, pairs, outcomes, seconds=120)
    order = ["failed", "waiting", "odd", "worst", "middle", "best"]
    assert [entry["name"] for entry in summary["results"]] == order
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary
    counts = {key: summary[key] for key in ("pairs", "done", "kept", "failed", "not_run")}
    assert counts == {"pairs": 6, "done": 4, "kept": 0, "failed": 1, "not_run": 1}
    assert summary["pairs_per_minute"] == 2
    with (tmp_path / "summary.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == order
    assert rows[3]["dice.after.mean"] == "0.25"
    assert (rows[3]["site"], rows[3]["warnings"]) == ("A", "look at it")
    assert (rows[0]["note"], rows[0]["dice.after.mean"]) == (outcomes["failed"].note, "")
    assert "backend" not in rows[0]
    assert not any("labels" in column for column in rows[0])
    words = Page((tmp_path / "summary.html").read_text(encoding="utf-8")).words
    assert [word for word in words if word in order] == [*order, "best"]  # equal at the label


def written(out: Path, metrics: dict[str, tuple[dict, list[str]]]) -> dict:
    """The summary of pairs with these metrics and warnings."""
    for name, (content, warnings) in metrics.items():
        folder = out / "pairs" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
        (folder / "record.json").write_text(json.dumps({"warnings": warnings}), encoding="utf-8")
    pairs = [Pair(name, Inputs(Path("m"), Path("f"))) for name in metrics]
    return write_summary(out, pairs, {name: Outcome(name, "done") for name in metrics}, seconds=1)


def test_doubtful_pairs_come_before_good_ones_and_measures_are_not_mixed(tmp_path):
    def dice(mean: float, ncc: float) -> dict:
        return {"dice": {"after": {"mean": mean, "labels": {}}}, "ncc": {"after": ncc}}

    metrics = {
        "a": (dice(0.8, 0.97), []),
        "b": (dice(0.6, 0.98), []),
        "doubtful": (dice(0.9, 0.99), ["it looks odd"]),
        # No labels: among the best by its NCC, though that is larger than any Dice.
        "no labels, good": ({"ncc": {"after": 0.985}}, []),
        "no labels, bad": ({"ncc": {"after": 0.5}}, []),
    }
    summary = written(tmp_path, metrics)
    order = [entry["name"] for entry in summary["results"]]
    assert order[0] == "doubtful"
    assert set(order[1:3]) == {"no labels, bad", "b"}
    assert set(order[3:]) == {"a", "no labels, good"}


def test_labels_have_names_and_the_worst_comes_first(tmp_path):
    def of(good: float, bad: float) -> dict:
        values = {"4": good, "11": bad, "99": None}
        stage = {"mean": 0.5, "labels": values}
        return {"dice": {"before": stage, "after": stage}, "label_names": {"11": "Brain <Stem>"}}

    summary = written(tmp_path, {"x": (of(0.9, 0.5), []), "y": (of(0.8, 0.1), [])})
    labels = summary["labels"]
    assert list(labels) == ["11", "4"]
    assert (labels["11"]["name"], labels["11"]["worst_pair"]) == ("Brain <Stem>", "y")
    assert labels["11"]["dice.after"]["mean"] == pytest.approx(0.3)
    assert labels["4"]["dice.after"]["n"] == 2
    words = Page((tmp_path / "summary.html").read_text(encoding="utf-8")).words
    assert "11 Brain <Stem>" in words


def test_tables_of_the_summary_sort_the_worst_first(tmp_path, open_page):
    def of(value: float | None) -> dict:
        stage = {"mean": value, "labels": {"4": value, "11": 0.5}}
        return {"dice": {"after": stage}, "hd95_mm": {"after": {"mean": 10 * (value or 0.1)}}}

    written(tmp_path, {name: (of(v), []) for name, v in (("b", 0.5), ("a", 0.9), ("c", 0.7))})
    page = open_page(tmp_path / "summary.html")
    pairs = page.locator("table").first
    shown = lambda: pairs.locator("tbody td:first-child").all_inner_texts()  # noqa: E731
    assert shown() == ["b", "c", "a"]
    for heading, order in (
        ("HD95 (mm)", ["a", "c", "b"]),
        ("Dice after", ["b", "c", "a"]),
        ("Dice after", ["a", "c", "b"]),
        ("pair", ["a", "b", "c"]),
    ):
        pairs.locator("thead button", has_text=heading).click()
        assert shown() == order
    assert pairs.locator("[aria-sort]").get_attribute("aria-sort") == "ascending"


def test_summary_on_a_phone_and_by_keyboard(subjects, zero_bundle_path, tmp_path, open_page):
    (subjects / "bad.nii").write_text("no image", encoding="utf-8")
    rows = f"one,{A_TO_B}\ntwo,c_t1.nii.gz,b_t1.nii.gz\nbad,bad.nii,b_t1.nii.gz\n"
    table = write_table(subjects, f"name,moving,fixed\n{rows}")
    assert cohort(zero_bundle_path, tmp_path / "out", table, "--report") == 1
    page = open_page(tmp_path / "out/summary.html", viewport={"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    note = page.locator(".note").bounding_box()
    assert note["x"] + note["width"] <= 360
    assert page.locator("svg a").count() > 2
    reached = []
    headings = page.locator("thead").first.locator("button").count()
    for _ in range(3 + headings):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim()"))
    assert reached[0].startswith("pair")  # the table, which the arrow keys scroll
    assert set(reached[-2:]) == {"one", "two"}
    page.keyboard.press("Enter")
    page.wait_for_url("**/report.html")


def test_statistics_are_those_of_numpy():
    entry = statistics_of([3.0, None, 1.0, 2.0, 10.0])
    assert entry is not None
    assert (entry["n"], entry["mean"], entry["median"], entry["max"]) == (4, 4.0, 2.5, 10.0)
    assert entry["sd"] == pytest.approx(np.std([3, 1, 2, 10], ddof=1))
    assert statistics_of([None]) is None
    assert statistics_of([1.0])["sd"] == 0.0


# --- command line ---------------------------------------------------------------------------------


def test_progress_tells_rate_and_time_left(subjects, zero_bundle_path, tmp_path, capsys):
    table = long_table(subjects, 3)
    assert cohort(zero_bundle_path, tmp_path / "out", table) == 0
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert lines[0].startswith("1/3 pairs, ")
    assert "a minute" in lines[0]
    assert "left" in lines[0]
    assert lines[-1] == "3/3 pairs"
    assert "NCC after" in captured.out
    assert "3 done at " in captured.out
    assert cohort(zero_bundle_path, tmp_path / "out", table, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 3


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["x.csv", "--template", "t.nii"],
        ["--template", "t.nii"],
        ["x.csv", "--images", "folder"],
        ["x.csv", "--template-labels", "l.nii"],
        ["x.csv", "--at-once", "0"],
    ],
)
def test_wrong_usage_is_exit_code_two(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["cohort", *words, "-o", "out"])
    assert "see paramorph-rt cohort --help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--precision", "fp16", "--backend", "openvino"], "openvino: expected precision fp32"),
        (["--model", "none", "--backend", "cuda"], "model none: expected no backend"),
        (["--model", "nowhere"], "nowhere: expected a bundle"),
        (["--label-names", "nowhere.csv"], "nowhere.csv: expected"),
    ],
)
@pytest.mark.parametrize("command", [["cohort", "no.csv"], ["bids", "no", "out", "participant"]])
def test_what_cannot_be_met_is_told_before_files_are_read(
    words, sentence, command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    of_command = ["-o", "out"] if command[0] == "cohort" else ["--template", "no.nii"]
    assert main([*command, *of_command, *words]) == 1
    assert sentence in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_out_dir_that_is_a_file(subjects, tmp_path, capsys):
    (tmp_path / "out").write_text("file", encoding="utf-8")
    assert cohort(tmp_path, tmp_path / "out", long_table(subjects, 1)) == 1
    assert "expected a folder, got a file" in capsys.readouterr().err


def test_without_distributed_the_sentence_says_what_to_install(tmp_path):
    program = (
        "import sys; sys.modules['distributed'] = None\n"
        "from paramorph_rt.cohort.run import run_cohort\n"
        "from paramorph_rt.request import Options\n"
        "from paramorph_rt.errors import MissingDependencyError\n"
        f"try: next(run_cohort([], Options(), {str(tmp_path)!r}, scheduler='tcp://x:1'))\n"
        "except MissingDependencyError as err: print(err)"
    )
    assert 'python -m pip install "paramorph-rt[cluster]"' in run_python("-c", program).stdout

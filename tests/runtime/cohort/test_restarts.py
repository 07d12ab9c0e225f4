from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from paramorph_rt import Registration, RegistrationResult
from paramorph_rt.cohort import work
from paramorph_rt.cohort.pairs import Pair
from paramorph_rt.cohort.run import run_cohort
from paramorph_rt.request import Inputs, Options
from paramorph_rt.results.provenance import content_hash

from .cohorts import Page, cohort, inodes, long_table, statuses


def run(pair: Pair, options: Options, out: Path, **more: bool) -> tuple[str, str]:
    (outcome,) = run_cohort([pair], options, out, **more)
    return outcome.status, outcome.note


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

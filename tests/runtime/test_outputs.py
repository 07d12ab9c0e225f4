from __future__ import annotations

import json

import pytest

from paramorph_rt.errors import OutputError
from paramorph_rt.results.outputs import check_outputs, staged_outputs


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_new_folder_appears_with_everything(tmp_path):
    folder = tmp_path / "a" / "b"
    with staged_outputs(folder, force=False) as staging:
        (staging / "warped.nii.gz").write_text("new", encoding="utf-8")
        assert not folder.exists()
    assert names(folder) == {"warped.nii.gz"}
    assert names(tmp_path / "a") == {"b"}


def fail_after_writing(folder, error: Exception, force: bool = False) -> None:
    with staged_outputs(folder, force) as staging:
        (staging / "metrics.json").write_text("half", encoding="utf-8")
        raise error


def test_failure_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        fail_after_writing(tmp_path / "out", RuntimeError("stop"))
    assert not names(tmp_path)


def test_earlier_results_need_force(tmp_path):
    (tmp_path / "metrics.json").write_text("old", encoding="utf-8")
    match = r"expected no earlier results, got metrics.json; pass --force"
    with pytest.raises(OutputError, match=match), staged_outputs(tmp_path, force=False):
        pass
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == "old"


def test_force_replaces_our_files_and_leaves_others(tmp_path):
    for name in ("metrics.json", "warped_labels.nii.gz", "mine.txt"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    with staged_outputs(tmp_path, force=True) as staging:
        (staging / "metrics.json").write_text("new", encoding="utf-8")
    assert names(tmp_path) == {"metrics.json", "mine.txt"}  # stale labels are gone
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == "new"
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "old"


def test_force_replaces_what_was_warped_along(tmp_path):
    (tmp_path / "also_warped").mkdir()
    for name in ("old.nii.gz", "mine.nii.gz"):
        (tmp_path / "also_warped" / name).write_text("old", encoding="utf-8")
    inputs = {"also 1": {"path": "/somewhere/old.mha"}}
    metrics = json.dumps({"provenance": {"inputs": inputs}})
    (tmp_path / "metrics.json").write_text(metrics, encoding="utf-8")
    with pytest.raises(OutputError, match=r"got also_warped, metrics\.json; pass --force"):
        check_outputs(tmp_path, force=False)
    with staged_outputs(tmp_path, force=True) as staging:
        (staging / "also_warped").mkdir()
        (staging / "also_warped/new.nii.gz").write_text("new", encoding="utf-8")
    assert names(tmp_path / "also_warped") == {"new.nii.gz", "mine.nii.gz"}


def test_failure_leaves_earlier_results(tmp_path):
    (tmp_path / "metrics.json").write_text("old", encoding="utf-8")
    full = OSError(28, "No space left on device")
    with pytest.raises(OutputError, match="expected to write the results, got No space left"):
        fail_after_writing(tmp_path, full, force=True)
    assert names(tmp_path) == {"metrics.json"}
    assert (tmp_path / "metrics.json").read_text(encoding="utf-8") == "old"


def test_file_in_the_way(tmp_path):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(OutputError, match="expected a folder, got a file"):
        check_outputs(tmp_path / "out", force=True)
    with pytest.raises(OutputError, match=r"got no permission for .*/out;"):
        check_outputs(tmp_path / "out" / "below", force=True)

"""`paramorph-rt bids` on a small dataset; what it writes is valid BIDS."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paramorph_rt.cli import main
from paramorph_rt.images.volume import save_labels, save_volume

from .phantoms import centred_grid, head, head_labels, volume_of

VALIDATOR = Path(sys.executable).with_name("bids-validator-deno")
RAW = {"Name": "phantoms", "BIDSVersion": "1.10.0", "DatasetType": "raw", "License": "CC0"}


@pytest.fixture
def dataset(tmp_path) -> Path:
    """Two participants, the first with two sessions; label maps in derivatives; a template."""
    root = tmp_path / "raw"
    for n, (sub, ses) in enumerate((("01", "ses-a"), ("01", "ses-b"), ("02", ""))):
        entities = "_".join(filter(None, (f"sub-{sub}", ses)))
        grid = centred_grid("RAS", (30, 34, 28), (1.5, 1.5, 1.5), (n, 0, 0))
        place = Path(f"sub-{sub}", ses, "anat")
        for home in (root, root / "derivatives/seg"):
            (home / place).mkdir(parents=True)
        save_volume(root / place / f"{entities}_T1w.nii.gz", volume_of(head, grid))
        labels = root / "derivatives/seg" / place / f"{entities}_desc-manual_dseg.nii.gz"
        save_labels(labels, volume_of(head_labels, grid))
    functional = root / "sub-01/ses-a/func/sub-01_ses-a_task-rest_bold.nii.gz"
    functional.parent.mkdir()
    functional.touch()
    (root / "dataset_description.json").write_text(json.dumps(RAW), encoding="utf-8")
    grid = centred_grid("LAS", (32, 34, 30), (1.5, 1.5, 1.5))
    (tmp_path / "tpl-Phantom").mkdir()
    template = tmp_path / "tpl-Phantom/tpl-Phantom_T1w.nii.gz"
    save_volume(template, volume_of(head, grid))
    save_labels(template.with_name("tpl-Phantom_dseg.nii.gz"), volume_of(head_labels, grid))
    return root


def bids(model: Path, dataset: Path, out: Path, level: str, *words: object) -> int:
    template = dataset.parent / "tpl-Phantom/tpl-Phantom_T1w.nii.gz"
    options = ["--template", template, "--model", model, "--backend", "onnxruntime", "--no-affine"]
    return main([*map(str, ["bids", dataset, out, level, *options, *words])])


def results(out: Path) -> dict[str, str]:
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return {entry["name"]: entry["status"] for entry in summary["results"]}


ALL = {"sub-01_ses-a_T1w", "sub-01_ses-b_T1w", "sub-02_T1w"}


def test_participants_then_group(dataset, zero_bundle_path, tmp_path, capsys):
    out = dataset / "derivatives/paramorph"
    one = ["--participant_label", "sub-01", "--session-label", "b"]
    assert bids(zero_bundle_path, dataset, out, "participant", *one) == 0
    assert results(out) == {"sub-01_ses-b_T1w": "done"}
    assert bids(zero_bundle_path, dataset, out, "group") == 0
    assert results(out) == dict.fromkeys(ALL, "not run") | {"sub-01_ses-b_T1w": "kept"}
    assert bids(zero_bundle_path, dataset, out, "participant") == 0
    assert results(out) == dict.fromkeys(ALL, "done") | {"sub-01_ses-b_T1w": "kept"}
    capsys.readouterr()
    assert bids(zero_bundle_path, dataset, out, "group", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 3
    stem = "sub-01/ses-a/anat/sub-01_ses-a_space-Phantom_T1w"
    assert json.loads((out / f"{stem}.json").read_text(encoding="utf-8"))["Sources"] == [
        "bids:raw:sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz",
        "bids::sub-01/ses-a/anat/sub-01_ses-a_from-T1w_to-Phantom_mode-image_xfm.nii.gz",
    ]
    described = json.loads((out / "dataset_description.json").read_text(encoding="utf-8"))
    assert described["DatasetLinks"] == {"raw": "../..", "tplPhantom": "../../../tpl-Phantom"}


def test_what_is_written_is_valid_bids(dataset, zero_bundle_path, tmp_path):
    if not VALIDATOR.exists() and not shutil.which("bids-validator-deno"):
        pytest.skip("needs bids-validator-deno of the extra dev")
    out, labels = tmp_path / "out", dataset / "derivatives/seg"
    template_labels = tmp_path / "tpl-Phantom/tpl-Phantom_dseg.nii.gz"
    options = ["--derivatives", labels, "--template-labels", template_labels, "--inverse"]
    options += ["--report", "--output-grid", tmp_path / "tpl-Phantom/tpl-Phantom_T1w.nii.gz"]
    assert bids(zero_bundle_path, dataset, out, "participant", *options) == 0
    warped = [path.name for path in out.rglob("*_dseg.nii.gz")]
    assert len(warped) == 3
    program = VALIDATOR if VALIDATOR.exists() else "bids-validator-deno"
    command = [str(program), "--json", str(out)]
    found = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=False)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] == "error"] == []
    # What is left to say about the data itself is not ours to know.
    codes = {issue["code"] for issue in issues}
    assert codes <= {"README_FILE_MISSING", "TOO_FEW_AUTHORS", "SIDECAR_KEY_RECOMMENDED"}
    # A validator that says nothing of anything would pass, too.
    (out / "sub-01/anat").mkdir()
    (out / "sub-01/anat/sub-01_nonsense.nii.gz").touch()
    found = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, check=False)
    issues = json.loads(found.stdout)["issues"]["issues"]
    assert any(issue["severity"] == "error" for issue in issues)


BAD = {
    "no dataset": (["derivatives/seg/sub-01"], "expected a BIDS dataset with a folder sub-LABEL"),
    "no folder": (["nowhere"], "got no such folder; pass its root"),
    "no participant": ([".", "--participant-label", "9"], "participant 9: .* among 01, 02; check"),
    "no session": (
        [".", "--session-label", "c"],
        "session c: .* among a, b; check --session-label",
    ),
    "no image": ([".", "--suffix", "T2w"], "expected images sub-…_T2w in anat"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_one_sentence(dataset, zero_bundle_path, tmp_path, capsys, case):
    (folder, *words), match = BAD[case]
    out, template = tmp_path / "out", tmp_path / "tpl-Phantom/tpl-Phantom_T1w.nii.gz"
    command = ["bids", dataset / folder, out, "participant", "--template", template, *words]
    assert main([*map(str, command), "--model", str(zero_bundle_path)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(match, last)
    assert not out.exists()


def test_group_before_any_participant_is_one_sentence(dataset, zero_bundle_path, tmp_path, capsys):
    assert bids(zero_bundle_path, dataset, tmp_path / "out", "group") == 1
    assert "expected results of the level participant, got none" in capsys.readouterr().err


def test_participant_without_an_image_is_told_and_the_others_go_on(
    dataset, zero_bundle_path, tmp_path, capsys, caplog
):
    (dataset / "sub-02/anat/sub-02_T1w.nii.gz").rename(dataset / "sub-02/anat/sub-02_T2w.nii.gz")
    assert bids(zero_bundle_path, dataset, tmp_path / "out", "participant") == 0
    assert "sub-02: no image T1w in anat" in caplog.text
    assert set(results(tmp_path / "out")) == ALL - {"sub-02_T1w"}

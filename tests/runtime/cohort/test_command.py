from __future__ import annotations

import json

import pytest

from paramorph_rt.cli import main

from ..test_cli import run_python
from .cohorts import cohort, long_table


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

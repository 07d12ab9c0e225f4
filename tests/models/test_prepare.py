from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .test_data import write_subject


@pytest.fixture
def prepare(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "models"))
    import prepare

    yield prepare.main
    sys.modules.pop("prepare")


@pytest.fixture
def config(tmp_path):
    for part, names in (("train", "ab"), ("validation", "c")):
        (tmp_path / part).mkdir()
        for seed, name in enumerate(names):
            write_subject(tmp_path / part, name, seed=seed)
    path = tmp_path / "mine.toml"
    path.write_text(
        f'[run]\nout = "{tmp_path}/run"\n'
        f'[data]\nroot = "{tmp_path}/train"\nvalidation_root = "{tmp_path}/validation"\n'
        "workers = 1\n"
        "[grid]\nshape = [32, 32, 32]\nspacing_mm = [2.0, 2.0, 2.5]\n",
        encoding="utf-8",
    )
    return path


def test_all_subjects_are_prepared_and_counted(prepare, config, tmp_path, capsys):
    assert prepare(["--config", str(config)]) == 0
    cached = [path.name.split("-")[0] for path in sorted((tmp_path / "run/cache").iterdir())]
    assert cached == ["a", "b", "c"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["prepared a", "prepared b", "prepared c"]
    assert lines[3].startswith("2 subjects to train on and 1 to validate on, ready in ")
    assert lines[4:] == [
        "aligned to: a",
        "grid: 32 × 32 × 32 voxels of 2 × 2 × 2.5 mm, RAS",
        f"cache: {tmp_path}/run/cache",
    ]


def test_another_run_folder_and_options_are_taken(prepare, config, tmp_path, capsys):
    options = ["--set", "data.reference=c", "--set", "data.validation_root="]
    assert prepare(["--config", str(config), "--out", f"{tmp_path}/other", *options]) == 1
    assert "reference: expected the name of a subject, got c; choose one" in capsys.readouterr().err
    assert prepare(["--config", str(config), "--out", f"{tmp_path}/other", *options[:2]]) == 0
    assert len(list((tmp_path / "other/cache").iterdir())) == 3


def test_data_that_cannot_be_used_are_one_line(prepare, config, capsys):
    assert prepare(["--config", str(config), "--set", "data.layout=lpba40"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("prepare: [data] validation_root: expected nothing with the layout lp")
    assert error.count("\n") == 1

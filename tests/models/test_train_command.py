from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path

import pytest

from paramorph.checkpoint import load_weights
from paramorph.options import OptionError, from_table, read_table
from paramorph.run_config import SECTIONS, all_options, load_run_config

from .test_data import write_subject

CONFIGS = Path(__file__).parents[2] / "models" / "configs"

SMALL = """
[run]
name = "phantom"
[data]
workers = 1
[grid]
shape = [32, 32, 32]
spacing_mm = [2, 2, 2]
[network]
size = "paramorph-tiny"
window = [2, 2, 2]
[training]
steps = 2
precision = "float32"
"""


@pytest.fixture
def train(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "models")
    import train

    return train


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "volumes"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        write_subject(folder, name, centre=(seed, -seed, 0), seed=seed)
    text = SMALL.replace(
        "[data]", f'[data]\nroot = "{folder}"\nvalidation_root = "{folder}"'
    ).replace("[run]", f'[run]\nout = "{tmp_path / "run"}"')
    (tmp_path / "small.toml").write_text(text, encoding="utf-8")
    return tmp_path / "small.toml"


def test_from_files_to_weights(train, config, tmp_path, monkeypatch, capsys):
    options = ["--config", str(config), "--device", "cpu"]
    out = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["models/train.py", *options])
    assert train.main(options) == 0
    _, info = load_weights(out / "weights.safetensors")
    assert (info.name, info.spacing_mm, info.shape) == ("phantom", (2.0,) * 3, (32,) * 3)
    assert info.provenance["training"]["steps"] == 2
    command = (out / "command.txt").read_text(encoding="utf-8")
    assert "models/train.py --config" in command
    assert "torch 2" in command
    assert load_run_config(out / "config.toml") == load_run_config(config)

    assert train.main(options) == 1
    assert "pass --resume to go on with it" in capsys.readouterr().err
    assert train.main([*options, "--resume"]) == 0
    assert train.main([*options, "--resume", "--set", "training.learning_rate=0.1"]) == 1
    assert "differs in training.learning_rate" in capsys.readouterr().err
    assert train.main([*options, "--resume", "--set", "training.steps=1"]) == 1
    assert "expected training.steps from the 2 that are done, got 1" in capsys.readouterr().err
    assert train.main([*options, "--resume", "--set", "training.steps=3"]) == 0
    assert "resumed at step 2" in capsys.readouterr().out
    log = (out / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert max(json.loads(line)["step"] for line in log) == 3
    assert train.main([*options, "--out", str(tmp_path / "x"), "--set", "data.reference=z"]) == 1
    assert "expected the name of a subject, got z" in capsys.readouterr().err


def test_a_grid_that_is_no_multiple_of_32_is_told_as_such(train, config, capsys):
    options = ["--config", str(config), "--set", "grid.shape=[60, 60, 60]"]
    assert train.main(options) == 1
    assert "sizes that are multiples of 32, got (60, 60, 60)" in capsys.readouterr().err


def test_a_damaged_volume_stops_before_anything_is_trained(train, config, tmp_path, capsys):
    volume = tmp_path / "volumes" / "b_t1.nii.gz"
    volume.write_bytes(volume.read_bytes()[:4000])
    assert train.main(["--config", str(config), "--device", "cpu"]) == 1
    assert "b_t1.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_every_option_is_documented_and_read_back(tmp_path):
    (tmp_path / "all.toml").write_text(all_options(), encoding="utf-8")
    (tmp_path / "none.toml").write_text("", encoding="utf-8")
    assert load_run_config(tmp_path / "all.toml") == load_run_config(tmp_path / "none.toml")
    described = all_options().count("\n# ") + all_options().startswith("# ")
    assert described == sum(len(section) for section in tomllib.loads(all_options()).values())
    assert set(tomllib.loads(all_options())) == set(SECTIONS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3", r"expected every option in a section, got steps outside"),
        ("[train]\nsteps = 3", r"expected the sections run, .*, got train;"),
        ("[training]\nstep = 3", r"\[training\] step: expected one of steps, "),
        ("[training]\nsteps = 3.5", r"\[training\] steps: expected int, got 3\.5"),
        ("[training]\nrecompute = 1", r"\[training\] recompute: expected bool, got 1"),
        ("[grid]\nshape = [32, 32]", r"\[grid\] shape: expected a list of 3, got \[32, 32\]"),
        ('[loss]\nsimilarity = "l2"', r"\[loss\] similarity: expected ncc or .*, got l2"),
        ("[loss", "expected a TOML file, got"),
    ],
)
def test_a_configuration_that_says_nonsense_is_refused(text, message, tmp_path):
    (tmp_path / "bad.toml").write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match=message):
        load_run_config(tmp_path / "bad.toml")


def test_overrides_are_stronger_than_the_file(config):
    overrides = ["training.steps=7", "run.name=other", "grid.shape=[64, 32, 32]"]
    changed = load_run_config(config, overrides)
    assert (changed.training.steps, changed.run.name) == (7, "other")
    assert changed.grid.shape == (64, 32, 32)
    with pytest.raises(OptionError, match=r"--set: expected SECTION\.OPTION=VALUE, got steps=7"):
        load_run_config(config, ["steps=7"])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid(path, train_features):
    if path.stem.endswith("-features"):
        for name, values in read_table(path, ["run.init="]).items():
            from_table(train_features.SECTIONS[name], name, values)
        return
    assert load_run_config(path, ["run.init="]).weights_info().name

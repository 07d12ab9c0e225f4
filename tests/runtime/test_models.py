"""`paramorph-rt models`, and what must hold of every model that comes along."""

from __future__ import annotations

import json

import pytest

from paramorph_rt.bundle import DEFAULT_NAME, candidates, load_bundle
from paramorph_rt.cli import main


def test_the_default_comes_first(capsys):
    assert main(["models", "--json"]) == 0
    models = json.loads(capsys.readouterr().out)
    assert models[0]["name"] == DEFAULT_NAME
    assert models[0]["networks"] == ["registration", "features"]
    assert {model["name"] for model in models} >= {
        DEFAULT_NAME,
        "hippocampus-small",
        "prostate-t2-small",
    }


@pytest.mark.parametrize("path", candidates(), ids=lambda path: path.name)
def test_every_model_says_what_it_is_for(path, capsys):
    bundle = load_bundle(path)
    assert bundle.name == path.name
    for file in bundle.manifest["files"]:
        bundle.verified_path(file)
    assert main(["models"]) == 0
    told = capsys.readouterr().out.split("\n\n")[candidates().index(path)]
    for what in ("made for", "licence", "reached", "limits"):
        assert what in told


def test_a_model_of_the_users_own_is_told_alone(bundle_path, monkeypatch, capsys):
    monkeypatch.setenv("PARAMORPH_MODEL", str(bundle_path))
    assert main(["models", "--json"]) == 0
    assert [model["folder"] for model in json.loads(capsys.readouterr().out)] == [str(bundle_path)]

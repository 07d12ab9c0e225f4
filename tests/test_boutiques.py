"""Boutiques takes the descriptors, and the commands that it makes by them are ours."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from paramorph_rt.cli import build_parser

DOCS = Path(__file__).parents[1] / "docs"
NAMES = ("infer", "cohort", "bids")


def test_descriptors_are_current(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    from boutiques_descriptors import FOLDER, texts

    published = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert published == texts(), "run make docs"
    assert set(published) == {f"paramorph-rt-{name}.json" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_boutiques_makes_commands_that_our_parser_takes(name, tmp_path):
    bosh = pytest.importorskip("boutiques.bosh", reason="needs boutiques of the extra dev").bosh
    path = DOCS / f"boutiques/paramorph-rt-{name}.json"
    bosh(["validate", str(path)])  # raises
    image, folder = tmp_path / "image.nii.gz", tmp_path / "data"
    image.touch()
    folder.mkdir()
    exclusive = {
        "infer": ("no_affine", "quiet"),
        "cohort": ("table", "all_pairs", "no_affine", "quiet"),
        "bids": ("no_affine", "quiet"),
    }[name]
    values: dict[str, object] = {}
    for entry in json.loads(path.read_text(encoding="utf-8"))["inputs"]:
        if entry["id"] in exclusive:
            continue
        value: object = {"Flag": True, "File": str(image), "Number": 2, "String": "x"}[
            entry["type"]
        ]
        value = entry.get("value-choices", [value])[0]
        values[entry["id"]] = [value, value] if entry.get("list") else value
    command = bosh(["exec", "simulate", str(path), "-i", json.dumps(values)]).stdout
    words = shlex.split(command.splitlines()[-1])
    assert words[:2] == ["paramorph-rt", name]
    parsed = vars(build_parser().parse_args(words[1:]))
    for key, value in values.items():
        found = parsed[key]
        shown = list(map(str, found)) if isinstance(found, list) else found
        assert shown == value or str(shown) == str(value), key

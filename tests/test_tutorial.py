"""The commands of docs/tutorial.md, in its order, with a training of a few steps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[1]
SHORTER = {
    "training.steps=800": "training.steps=2",
    "training.validate_every=400": "training.validate_every=2 --set features.widths=[4,8,12]",
}


def blocks(text: str) -> list[str]:
    return [part.split("```")[0] for part in text.split("```sh\n")[1:]]


def test_the_tutorial_leads_to_a_result(tmp_path):
    text = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    for folder in ("models", "export"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for part in ("train", "validation"):  # four of each are enough to be prepared
        (tmp_path / "examples/hippocampus" / part).mkdir(parents=True)
        for path in sorted((ROOT / "examples/hippocampus" / part).iterdir())[:8]:
            shutil.copy(path, tmp_path / "examples/hippocampus" / part)
    programs = tmp_path / ".venv/bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    program = f'#!/bin/sh\nexec "{sys.executable}" -m paramorph_rt "$@"\n'
    (programs / "paramorph-rt").write_text(program, encoding="utf-8")
    for path in programs.iterdir():
        path.chmod(0o755)
    for block in blocks(text):
        subprocess.run(["bash", "-ec", block], cwd=tmp_path, check=True, env=os.environ)
    dice = {}
    for model in ("none", "my-hippocampus"):
        metrics = json.loads((tmp_path / f"runs/result-{model}/metrics.json").read_bytes())
        dice[metrics["model"]] = metrics["dice"]["after"]["mean"]
    assert set(dice) == {"none", "hippocampus-features"}
    assert dice["none"] > 0.6

"""The scripts of the other wings: one sentence and exit code 1, and nothing half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from .harness import ROOT, Outcome, Program, needs, snapshot

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = needs("torch", "safetensors", "onnx", "onnxscript")
IMPORT, EXPORT = ROOT / "models/import_checkpoint.py", ROOT / "export/to_onnx.py"
WEIGHTS = ROOT / "runtime/paramorph_rt/bundles/brain-t1-small/weights.safetensors"


@pytest.fixture(scope="module")
def program(open_folder):
    """As the other one, with what the scripts import."""
    scratch = open_folder / "streams-scripts"
    scratch.mkdir()
    preloaded = ("torch", "safetensors.torch", "onnx", "paramorph.checkpoint")
    found = Program(scratch, *preloaded, "paramorph_export.bundle")
    yield found
    found.close()


def check(outcome: Outcome, program: str) -> None:
    assert not outcome.timed_out
    assert outcome.code == 1, outcome.err[-2000:]
    assert "Traceback" not in outcome.err, outcome.err[-2000:]
    line = outcome.err.splitlines()[-1]
    assert line.startswith(f"{program}: "), line
    assert ": expected " in line, line
    assert line.endswith("."), line


def _saved(content):
    return lambda path: torch.save(content, path)


CHECKPOINTS = {
    "missing": lambda path: None,
    "fifo": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": Path.mkdir,
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("weights", encoding="utf-8"),
    "list": _saved([1, 2]),
    "number": _saved(5),
    "empty_state": _saved({}),
    "int_names": _saved({1: torch.zeros(3)}),
    "words": _saved({"a": "b"}),
    "unknown_names": _saved({"a": torch.zeros(3)}),
    "nan": _saved({"reg_head.0.weight": torch.full((3, 48, 3, 3, 3), float("nan"))}),
    "complex": _saved({"reg_head.0.weight": torch.zeros(3, dtype=torch.complex64)}),
    "sparse": _saved({"reg_head.0.weight": torch.zeros(3, 3).to_sparse()}),
    "nested": _saved({"state_dict": {"state_dict": {"a": torch.zeros(1)}}}),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_is_none(name, program, place):
    CHECKPOINTS[name](place / "c.pth")
    before = snapshot(place)
    words = (IMPORT, "c.pth", "--out", "w.safetensors", "--window", 5, 5, 3)
    check(program(*words, cwd=place, timeout=90), "import_checkpoint")
    assert snapshot(place) == before


@pytest.mark.parametrize(
    "words",
    [
        ("--window", 999, 999, 999),
        ("--window", 0, 5, 3),
        ("--window", -1, -1, -1),
        ("--window", 5, 5, 3, "--spacing", "nan", 1, 1),
        ("--window", 5, 5, 3, "--spacing", 0, -1, 1),
        ("--window", 5, 5, 3, "--spacing", "inf", 1, 1),
        ("--window", 5, 5, 3, "--orientation", "XYZ"),
        ("--window", 5, 5, 3, "--orientation", ""),
        ("--window", 5, 5, 3, "--shape", 7, 7, 7),
        ("--window", 5, 5, 3, "--shape", 0, 0, 0),
        ("--window", 5, 5, 3, "--shape", 320000, 320000, 320000),
        ("--window", 5, 5, 3, "--out", "/proc/x/w.safetensors"),
        ("--window", 5, 5, 3, "--out", "c.pth/w.safetensors"),
        ("--window", 5, 5, 3, "--out", "w.txt"),
        ("--window", 5, 5, 3, "--out", "folder.safetensors", "--force"),
    ],
)
def test_options_of_an_import_that_mean_nothing(words, program, place):
    (place / "folder.safetensors").mkdir()
    torch.save({"a": torch.zeros(1)}, place / "c.pth")
    before = snapshot(place)
    words = (IMPORT, "c.pth", "--out", "w.safetensors", *words)
    check(program(*words, cwd=place, timeout=90), "import_checkpoint")
    assert snapshot(place) == before


METADATA = {
    "none": None,
    "no_json": {"paramorph": "{"},
    "null": {"paramorph": "null"},
    "deep": {"paramorph": "[" * 50_000 + "]" * 50_000},
    "list": {"paramorph": "[]"},
    "no_fields": {"paramorph": "{}"},
}
FIELDS = {
    "unknown_field": ("extra", 1),
    "cross_heads_0": ("network", {"cross_heads": 0}),
    "unknown_option": ("network", {"quarks": 3}),
    "window_of_words": ("network", {"window": "abc"}),
    "absurd_window": ("network", {"window": [999, 999, 999]}),
    "nan_spacing": ("spacing_mm", [float("nan"), 0, -1]),
    "orientation_xyz": ("orientation", "XYZ"),
    "percentiles": ("upper_percentile", float("nan")),
    "shape": ("shape", [1, 2, 3]),
    "shape_null": ("shape", None),
}


@pytest.mark.parametrize("name", [*METADATA, *FIELDS, "nan_tensor"])
def test_weights_that_mean_nothing(name, program, place):
    tensors = {"a": torch.zeros(1)}
    if name in METADATA:
        metadata = METADATA[name]
    else:
        with safetensors.safe_open(WEIGHTS, "pt") as file:
            metadata = dict(file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        info = json.loads(metadata["paramorph"])
        if name == "nan_tensor":
            key = next(key for key, tensor in tensors.items() if tensor.is_floating_point())
            tensors[key] = torch.full_like(tensors[key], float("nan"))
        else:
            field, value = FIELDS[name]
            info[field] = info[field] | value if field == "network" else value
        metadata["paramorph"] = json.dumps(info)
    safetensors.save_file(tensors, place / "w.safetensors", metadata=metadata)
    before = snapshot(place)
    words = (EXPORT, "--weights", "w.safetensors", "--out-dir", "BUNDLE")
    outcome = program(*words, cwd=place, timeout=90)
    check(outcome, "to_onnx")
    assert "w.safetensors" in outcome.err
    assert snapshot(place) == before


def test_a_full_disk_leaves_no_weights(place):
    from paramorph.checkpoint import load_weights, save_weights
    from paramorph_rt.errors import OutputError

    network, info = load_weights(WEIGHTS)
    (place / "folder").mkdir()
    with pytest.raises(OutputError, match="expected to write the result"):
        save_weights(place / "folder", network.state_dict(), info)
    assert list(snapshot(place)) == ["folder"]

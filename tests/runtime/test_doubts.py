"""What makes a result doubtful is in metrics.json, on the terminal and in the report alike."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pytest

from paramorph_rt import Registration
from paramorph_rt.cli import main
from paramorph_rt.images.volume import Volume, save_labels, save_volume
from paramorph_rt.metrics.doubts import flags_of

from .phantoms import NETWORK_SHAPE, centred_grid, head, head_labels, volume_of, write_bundle


def dice(before: float, affine: float, after: float) -> dict:
    stages = {"before": before, "affine": affine, "after": after}
    return {stage: {"mean": value, "labels": {"4": value}} for stage, value in stages.items()}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({}, []),
        ({"ncc": {"affine": 0.5, "after": 0.6}, "dice": dice(0.1, 0.2, 0.3)}, []),
        ({"ncc": {"affine": 0.5, "after": 0.4999}}, []),
        ({"ncc": {"affine": -0.2, "after": -0.5}}, []),  # inverted contrasts
        ({"ncc": {"affine": None, "after": 0.4}}, []),
        ({"ncc": {"affine": 0.6, "after": 0.5}}, ["NCC fell from 0.600 .* to 0.500"]),
        ({"ncc": {"affine": 0.6, "after": 0.51}, "refinement": {"features": True}}, []),
        ({"ncc": {"affine": 0.6, "after": 0.51}, "refinement": {"metric": "mind"}}, []),
        (
            {"ncc": {"affine": 0.6, "after": 0.49}, "refinement": {"features": True}},
            ["NCC fell from 0.600 .* to 0.490"],
        ),
        (
            {"ncc": {"affine": 0.6, "after": 0.51}, "refinement": {"metric": "ncc"}},
            ["NCC fell from 0.600 .* to 0.510"],
        ),
        ({"network_grid": {"spacing_growth": 1.1}}, []),
        ({"network_grid": {"spacing_growth": 1.5}}, ["1.50 times coarser"]),
        ({"dice": dice(0.5, 0.4, 0.0)}, ["Dice fell", r"any more, though it did before, of 4\."]),
        (
            {"dice": dice(0.5, 0.4, 0.0), "label_names": {"4": "3rd Ventricle"}},
            ["Dice fell", r"of 4 \(3rd Ventricle\)\."],
        ),
        ({"quality": {"score": 0.9}}, []),
        ({"quality": {"score": 0.2}}, ["would hardly accept it .score 0.20"]),
        # A label of a few voxels that overlapped by chance.
        ({"dice": dice(0.02, 0.05, 0.0)}, ["Dice fell"]),
    ],
)
def test_doubts_are_those_that_the_figures_give(metrics, words):
    found = [flag.sentence for flag in flags_of(metrics)]
    assert len(found) == len(words)
    for sentence, match in zip(found, words, strict=True):
        assert re.search(match, sentence)


def test_harm_is_said_everywhere(tmp_path, capsys, caplog):
    """A network that shifts what lay right does harm."""
    shift = np.zeros((3, *NETWORK_SHAPE), np.float32)
    shift[0] = 3.0
    bundle = write_bundle(tmp_path / "harm", shift)
    grid = centred_grid("RAS", (44, 50, 42))
    save_volume(tmp_path / "image.nii.gz", volume_of(head, grid))
    save_labels(tmp_path / "labels.nii.gz", volume_of(head_labels, grid))
    out, options = tmp_path / "out", []
    for role in ("moving", "fixed"):
        options += [f"--{role}", tmp_path / "image.nii.gz"]
        options += [f"--{role}-labels", tmp_path / "labels.nii.gz"]
    options += ["--model", bundle, "--no-affine", "--out-dir", out, "--report", "--refine", "off"]
    with caplog.at_level(logging.WARNING):
        assert main(["infer", *map(str, options)]) == 0
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    page = (out / "report.html").read_text(encoding="utf-8")
    terminal = capsys.readouterr().out
    assert len(metrics["warnings"]) >= 2
    for doubt in metrics["warnings"]:
        assert doubt in page
        assert doubt in terminal
        assert doubt in caplog.messages
    assert "Doubtful" in page


def test_nothing_is_doubtful_where_all_went_well(zero_bundle_path):
    image = volume_of(head, centred_grid("RAS", (44, 50, 42)))
    brighter = Volume(image.data * np.float32(1.1), image.grid, "brighter")
    result = Registration(zero_bundle_path)(brighter, image, affine=False, refine=0)
    assert result.metrics["warnings"] == []

"""Whatever an image file holds: it is registered as it is, or refused by one sentence."""

from __future__ import annotations

import json
import os

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from . import images
from .harness import check_refused, snapshot

QUICK = ("--quiet", "--no-affine", "--model", "none", "--refine", "off")


def infer(moving, fixed, *more):
    return ("infer", "-m", moving, "-f", fixed, "-o", "OUT", *QUICK, *more)


@pytest.mark.parametrize("name", images.REFUSED)
def test_a_bad_image_is_refused_by_one_sentence_and_leaves_nothing(name, program, good, place):
    bad = images.REFUSED[name](place)
    before = snapshot(place)
    outcome = program(*infer(bad, good / "fixed.nii.gz"), cwd=place)
    check_refused(outcome)
    assert snapshot(place) == before


@pytest.mark.parametrize("name", images.ANALYZE)
def test_a_bad_header_of_analyze(name, program, good, place):
    bad = images.analyze(place, *images.ANALYZE[name])
    before = snapshot(place)
    words = infer(bad, good / "fixed.nii.gz", "--analyze-orientation", "RAS")
    check_refused(program(*words, cwd=place), "bad.")
    assert snapshot(place) == before


NAMES = ("a b", "a\nb", "a\u2028b", "-a", "a'b\"c", "%s%n{}", "[a,1]", "🧠", "\u202ea", "a\x1b[31m")
NAMES += (os.fsdecode(b"caf\xe9"), "x" * 240)


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name_that_a_file_can_have(name, program, good, place):
    """As an input, as one that is warped along, and in the one line that refuses it."""
    (place / f"{name}.nii.gz").write_bytes((good / "moving.nii.gz").read_bytes())
    odd = f"./{name}.nii.gz"
    outcome = program(*infer(odd, good / "fixed.nii.gz", "--also", odd), cwd=place)
    assert outcome.code == 0, outcome.err
    assert (place / "OUT/also_warped" / f"{name}.nii.gz").is_file()
    (place / f"{name}.nii.gz").write_bytes(b"no image")
    check_refused(program(*infer(odd, good / "fixed.nii.gz", "--force"), cwd=place))


@pytest.mark.parametrize("name", images.TAKEN)
def test_an_odd_image_is_registered_where_itk_sees_it(name, program, good, place):
    odd = images.TAKEN[name](place)
    if odd.name.endswith((".nii", ".nii.gz", ".hdr")) or odd.is_dir():
        moving = good / "moving.nii.gz"
    else:  # their world is turned
        moving = odd
    outcome = program(*infer(moving, odd), cwd=place)
    assert outcome.code == 0, outcome.err
    json.loads((place / "OUT/metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    warped = nib.load(place / "OUT/warped.nii.gz")
    assert np.isfinite(warped.get_fdata()).all()
    if odd.name.endswith((".nii", ".nii.gz", ".hdr")):
        np.testing.assert_allclose(warped.affine, images.GRID.affine, atol=1e-4)
    if odd.is_file() and name not in ("nifti2", "nifti_pair"):  # ITK reads neither
        seen = sitk.ReadImage(str(odd))
        ours = sitk.ReadImage(str(place / "OUT/warped.nii.gz"))
        for corner in ((0, 0, 0), (15, 17, 13)):
            there = seen.TransformIndexToPhysicalPoint(corner)
            np.testing.assert_allclose(ours.TransformIndexToPhysicalPoint(corner), there, atol=1e-3)


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")

"""However voxels lie in the world, results lie where ITK sees them."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import save_volume

from ..runtime.phantoms import head, volume_of
from .harness import SCALE


def random_grid(chance: np.random.Generator) -> Grid:
    """Any orientation, a turn, spacings from 2 to 5 mm, a centre near the origin."""
    order, signs = chance.permutation(3), chance.choice([-1.0, 1.0], 3)
    directions = np.zeros((3, 3))
    directions[order, range(3)] = signs
    axis = chance.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis) * chance.uniform(0, np.radians(30))
    turn = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotation = np.linalg.solve(np.eye(3) - turn / 2, np.eye(3) + turn / 2)  # Cayley
    spacing, shape = chance.uniform(2, 5, 3), chance.integers(11, 20, 3)
    affine = np.eye(4)
    affine[:3, :3] = rotation @ directions * spacing
    affine[:3, 3] = chance.uniform(-4, 4, 3) - affine[:3, :3] @ ((shape - 1) / 2)
    return Grid(tuple(int(n) for n in shape), affine)


@pytest.mark.parametrize("seed", range(10 * SCALE))
def test_itk_reproduces_the_warped_image(seed, program, place):
    chance = np.random.default_rng(seed)
    for name in ("moving", "fixed"):
        save_volume(place / f"{name}.nii.gz", volume_of(head, random_grid(chance)))
    suffix = chance.choice([".nii.gz", ".nrrd", ".mha"])
    if suffix != ".nii.gz":  # the same image by another way
        sitk.WriteImage(sitk.ReadImage(str(place / "moving.nii.gz")), place / f"moving{suffix}")
    words = ("infer", "-m", f"moving{suffix}", "-f", "fixed.nii.gz", "-o", "OUT", "--quiet")
    outcome = program(*words, "--affine", "rigid", "--model", "none", "--refine", "3", cwd=place)
    assert outcome.code == 0, outcome.err
    moving, fixed = (sitk.ReadImage(str(place / f"{n}.nii.gz")) for n in ("moving", "fixed"))
    field = sitk.ReadImage(str(place / "OUT/displacement.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    everywhere = moving * 0 + 1
    theirs, inside = (
        sitk.GetArrayFromImage(
            sitk.Resample(image, fixed, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
        )
        for image in (moving, everywhere)
    )
    inside = inside > 0.999  # beyond, each has a background of its own
    ours = sitk.ReadImage(str(place / "OUT/warped.nii.gz"))
    assert ours.GetSize() == fixed.GetSize()
    np.testing.assert_allclose(ours.GetOrigin(), fixed.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(ours.GetDirection(), fixed.GetDirection(), atol=1e-4)
    assert inside.sum() > 100
    difference = np.abs(sitk.GetArrayFromImage(ours) - theirs)[inside]
    assert np.percentile(difference, 98) < 1.0  # of about 170; at the border ITK has other rules


@pytest.mark.parametrize("unit", ["micron", "meter"])
def test_units_change_nothing_but_the_numbers(unit, program, good, place):
    factor = {"micron": 1e3, "meter": 1e-3}[unit]
    for name in ("moving", "fixed"):
        image = nib.load(good / f"{name}.nii.gz")
        scaled = nib.Nifti1Image(
            image.get_fdata(dtype=np.float32), np.diag([factor] * 3 + [1]) @ image.affine
        )
        scaled.header.set_xyzt_units(unit)
        nib.save(scaled, place / f"{name}.nii.gz")
    quick = ("--quiet", "--no-affine", "--model", "none", "--refine", "3")
    for where, out in ((good, "mm"), (place, "other")):
        pair = ("-m", where / "moving.nii.gz", "-f", where / "fixed.nii.gz")
        assert program("infer", *pair, "-o", out, *quick, cwd=place).code == 0
    mm, other = (nib.load(place / out / "displacement.nii.gz") for out in ("mm", "other"))
    np.testing.assert_allclose(mm.affine, other.affine, atol=1e-3)
    np.testing.assert_allclose(mm.get_fdata(), other.get_fdata(), atol=0.02)


def test_orientation_that_was_said_is_taken_and_warned_of(program, good, place):
    image = nib.load(good / "moving.nii.gz")
    bare = nib.Nifti1Image(image.get_fdata(dtype=np.float32), None)
    bare.header.set_zooms(image.header.get_zooms())
    nib.save(bare, place / "bare.nii.gz")
    pair = ("-m", "bare.nii.gz", "-f", good / "fixed.nii.gz", "-o", "OUT", "--quiet")
    quick = ("--model", "none", "--refine", "off", "--analyze-orientation", "LPS")
    outcome = program("infer", *pair, *quick, cwd=place)
    assert outcome.code == 0, outcome.err
    assert "bare.nii.gz: no orientation codes in it; taken for LPS, as requested" in outcome.err


@pytest.mark.parametrize(
    ("code", "moved_mm", "is_told"), [(2, 10.0, True), (2, 0.01, False), (1, 10.0, False)]
)
def test_forms_that_say_two_things(code, moved_mm, is_told, program, good, place):
    """Where ITK sees the voxels elsewhere than we do, the results say so."""
    image = nib.load(good / "moving.nii.gz")
    both = nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine)
    qform = image.affine.copy()
    qform[0, 3] += moved_mm
    both.set_sform(image.affine, code)
    both.set_qform(qform, 1)
    nib.save(both, place / "both.nii.gz")
    (x, _, _) = sitk.ReadImage(str(place / "both.nii.gz")).GetOrigin()
    assert (abs(-x - image.affine[0, 3]) > 1) == is_told
    pair = ("-m", "both.nii.gz", "-f", good / "fixed.nii.gz", "-o", "OUT", "--quiet")
    quick = ("--model", "none", "--refine", "off", "--no-affine")
    assert program("infer", *pair, *quick, cwd=place).code == 0
    metrics = json.loads((place / "OUT/metrics.json").read_text(encoding="utf-8"))
    assert ("placed" in {flag["name"] for flag in metrics["quality"]["flags"]}) == is_told
    assert any("sform and qform" in warning for warning in metrics["warnings"]) == is_told

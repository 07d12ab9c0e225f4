"""Brain extraction: `--strip`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from paramorph_rt import Registration, Volume, load_labels, load_volume, save_volume
from paramorph_rt.bundle import NO_MODEL
from paramorph_rt.cli import main
from paramorph_rt.errors import VolumeError
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.images.volume import save_labels
from paramorph_rt.metrics.overlap import dice
from paramorph_rt.request import Inputs, Options
from paramorph_rt.results.bids import bids_names
from paramorph_rt.steps.brain_mask import brain_masks

from .conftest import SHARED_DATA
from .phantoms import centred_grid, head, volume_of

COLIN27 = Path(__file__).parents[2] / "examples/colin27/ch2bet.nii.gz"


@pytest.fixture(scope="module")
def brain() -> Volume:
    """Colin27 at 3 mm."""
    image = load_volume(COLIN27)
    grid = image.grid.with_shape([n // 3 for n in image.grid.shape])
    return Volume(resample_to_grid(image, grid), grid, "brain.nii.gz")


def overlap(mask: Volume, truth: np.ndarray) -> float:
    return dice(truth.astype(np.uint8), mask.data)[1]


def test_a_brain_without_skull_stays_nearly_as_it_is(brain):
    (mask,) = brain_masks([brain])
    assert mask.grid is brain.grid
    assert mask.data.dtype == np.uint8
    assert overlap(mask, brain.data > 20) > 0.9


@pytest.mark.parametrize("orientation", [(2, 0, 1), (1, 2, 0)])
def test_the_order_of_axes_does_not_matter(brain, orientation):
    columns = [*orientation, 3]
    grid = replace(
        brain.grid,
        shape=tuple(np.array(brain.grid.shape)[list(orientation)].tolist()),
        affine=brain.grid.affine[:, columns],
    )
    turned = Volume(brain.data.transpose(orientation).copy(), grid, "turned")
    straight, other = brain_masks([brain, turned])
    assert overlap(other, straight.data.transpose(orientation) != 0) > 0.99


def test_each_image_has_its_own_mask_whatever_is_beside_it(brain):
    darker = replace(brain, data=brain.data * np.float32(0.5))
    three = brain_masks([brain, darker, brain])
    np.testing.assert_array_equal(three[0].data, three[2].data)
    np.testing.assert_array_equal(three[0].data, three[1].data)  # percentiles scale intensities
    assert brain_masks([]) == []


def test_where_there_is_no_brain(rng_volume):
    with pytest.raises(VolumeError, match=r"expected a head or a brain of 50 ml at least, found"):
        brain_masks([rng_volume])


@pytest.fixture
def rng_volume() -> Volume:
    return volume_of(head, centred_grid("RAS", (30, 30, 30)), name="small.nii.gz")


def test_infer_writes_the_masks_that_it_made(brain, tmp_path, capsys):
    save_volume(tmp_path / "fixed.nii.gz", brain)
    save_volume(tmp_path / "moving.nii.gz", replace(brain, data=np.roll(brain.data, 1, 0)))
    own = replace(brain, data=(brain.data > 20).astype(np.uint8))
    save_labels(tmp_path / "own.nii.gz", own)
    line = ["infer", "-m", str(tmp_path / "moving.nii.gz"), "-f", str(tmp_path / "fixed.nii.gz")]
    line += ["--model", "none", "--refine", "2", "--strip", "--fixed-mask"]
    out = tmp_path / "out"
    assert main([*line, str(tmp_path / "own.nii.gz"), "-o", str(out)]) == 0
    assert not (out / "fixed_brain_mask.nii.gz").exists()  # that image has a mask
    mask = load_labels(out / "moving_brain_mask.nii.gz")
    assert overlap(mask, np.roll(brain.data, 1, 0) > 20) > 0.9


def test_no_brain_is_one_sentence_and_no_folder(rng_volume, tmp_path, capsys):
    save_volume(tmp_path / "a.nii.gz", rng_volume)
    image = str(tmp_path / "a.nii.gz")
    assert main(["infer", "-m", image, "-f", image, "--strip", "-o", str(tmp_path / "out")]) == 1
    assert "expected a head or a brain" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_masks_are_those_that_a_registration_uses(brain):
    moved = replace(brain, data=np.roll(brain.data, 1, 0))
    register = Registration(NO_MODEL)
    stripped = register(moved, brain, refine=2, strip=True)
    masks = dict(zip(("moving_mask", "fixed_mask"), brain_masks([moved, brain]), strict=True))
    given = register(moved, brain, refine=2, **masks)
    np.testing.assert_array_equal(stripped.displacement.vectors_mm, given.displacement.vectors_mm)
    assert stripped.brain_masks.keys() == {"moving", "fixed"}
    assert given.brain_masks == {}


def test_what_a_mask_leaves_out_does_not_make_a_result_doubtful(brain):
    """Both brains match; the bright rims around them differ, and the masks leave them out."""
    moving, fixed = replace(brain, data=np.roll(brain.data, 1, 0)), brain
    masks = {
        f"{name}_mask": replace(image, data=(image.data > 20).astype(np.uint8))
        for name, image in (("moving", moving), ("fixed", fixed))
    }
    rim = moving.data.copy()
    rim[:4] = rim[:, :, -4:] = 300.0
    rimmed = replace(moving, data=rim)
    evidence = [
        Registration(NO_MODEL)(image, fixed, refine=2, **masks).metrics["quality"]["evidence"]
        for image in (moving, rimmed)
    ]
    assert evidence[1]["overlap"] == pytest.approx(evidence[0]["overlap"], abs=0.02)
    assert evidence[1]["overlap"] > 0.95


def test_bids_has_names_for_masks(tmp_path):
    inputs = Inputs(tmp_path / "sub-1_T1w.nii.gz", tmp_path / "tpl-MNI_T1w.nii.gz")
    assert bids_names(inputs, Options(), tmp_path).brain_masks == {
        "moving": "sub-1/anat/sub-1_desc-brain_mask.nii.gz",
        "fixed": "sub-1/anat/sub-1_space-MNI_desc-brain_mask.nii.gz",
    }


HEADS = SHARED_DATA / "heads_2mm"


@pytest.mark.skipif(not HEADS.is_dir(), reason="needs heads with skull and label maps")
@pytest.mark.parametrize("name", ["IXI012", "IXI014"])
def test_real_heads(name):
    (mask,) = brain_masks([load_volume(HEADS / f"{name}_t1.nii.gz")])
    labels = load_labels(HEADS / f"{name}_labels.nii.gz").data != 0
    # The label maps leave out the fluid in and around the brain.
    closed = sitk.BinaryMorphologicalClosing(
        sitk.GetImageFromArray(labels.astype(np.uint8)), [3] * 3, sitk.sitkBall
    )
    assert overlap(mask, sitk.GetArrayFromImage(sitk.BinaryFillhole(closed)) != 0) > 0.85

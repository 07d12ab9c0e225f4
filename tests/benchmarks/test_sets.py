"""Which pairs the sets hold, and truths of those that are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import apply_affine
from scipy.ndimage import center_of_mass

import sets
from pairs import errors_mm, labelled_pairs
from paramorph.data import DataError
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.images.volume import save_labels, save_volume
from paramorph_rt.metrics.deformation import regularity
from paramorph_rt.transforms.itk import read_displacement
from sets import SETS, Case, colin_to_mni, deformed

from ..runtime.phantoms import centred_grid, head, head_labels, volume_of


def touched(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.nii.gz").touch()


def files_of(cases: list[Case]) -> list[tuple[str, str]]:
    return [(case.moving.image.name[:-7], case.fixed.image.name[:-7]) for case in cases]


def test_newborns_are_paired_in_a_ring_within_and_across_contrasts(tmp_path):
    for name in ("01", "02", "03"):
        files = (f"{name}_T1w_brain", f"{name}_T2w_brain", f"{name}_Segmentation")
        touched(tmp_path / "neonate", *files)
    cases = SETS["newborns-t1-t2"].cases(tmp_path, tmp_path)
    assert files_of(cases) == [
        ("01_T1w_brain", "02_T2w_brain"),
        ("02_T1w_brain", "03_T2w_brain"),
        ("03_T1w_brain", "01_T2w_brain"),
    ]
    assert [case.moving.labels.name[:2] for case in cases] == ["01", "02", "03"]
    assert cases[2].name == "03 → 01"


@pytest.fixture
def prostates(tmp_path) -> Path:
    """Two collections; one mask lies 0.06 mm beside its image, as those with rounded headers do."""
    grid = centred_grid("LPS", (30, 28, 20), (3, 3, 4))
    beside = centred_grid("LPS", (30, 28, 20), (3, 3, 4), centre=(0.06, 0.06, 0.06))
    folder = tmp_path / "prostate_native"
    images = ["prostate_dx/3", "prostate_dx/4", "prostatex/0000", "prostatex/0001"]
    for name in [*images, "prostatex/0001_repeat", "prostatex/2"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save_volume(folder / f"{name}_t2.nii.gz", volume_of(head, grid))
    for name in images:
        there = beside if name.endswith("0000") else grid
        save_labels(folder / f"{name}_labels.nii.gz", volume_of(head_labels, there))
    return tmp_path


def test_native_prostates_without_labels_are_left_out_and_collections_stay_apart(prostates):
    cases = SETS["prostates-native"].cases(prostates, prostates)
    assert [case.name for case in cases] == ["3 → 4", "4 → 3", "0000 → 0001", "0001 → 0000"]
    assert SETS["prostates-native"].affine == "rigid"
    pair = cases[2].load()
    assert pair.moving_labels.grid.matches(pair.moving.grid, 1e-4)
    assert pair.moving_labels.data.any()


def test_the_gland_of_a_patient_scanned_twice_is_carried_rigidly(prostates):
    (case,) = SETS["prostate-twice"].cases(prostates, prostates)
    assert case.name == "0001 → 0001_repeat"
    pair = case.load()  # of one phantom, which lies still
    assert np.mean(pair.moving_labels.data == pair.fixed_labels.data) > 0.99


@pytest.mark.parametrize("name", sorted({*SETS} - {"colin27-mni152"}))
def test_a_set_whose_folder_is_absent_is_one_sentence(name, tmp_path):
    with pytest.raises(DataError, match=r"expected at least two .*, got 0; check the folder"):
        SETS[name].cases(tmp_path, tmp_path)


def test_patients_go_to_another_contrast_of_one_another(tmp_path):
    grid = centred_grid("RAS", (24, 26, 28), (4, 4, 4))
    for name in ("07", "19"):
        (tmp_path / "contrasts" / name).mkdir(parents=True)
        for kind in ("t1", "t2"):
            save_volume(tmp_path / "contrasts" / name / f"{kind}.nii.gz", volume_of(head, grid))
    cases = SETS["contrasts-t1-t2"].cases(tmp_path, tmp_path)
    assert [case.name for case in cases] == ["07_t1 → 19_t2", "19_t1 → 07_t2"]
    pair = cases[0].load()
    assert set(np.unique(pair.fixed_labels.data)) == {0, sets.GREY, sets.WHITE}
    across = SETS["known-field-t1-t2"].cases(tmp_path, tmp_path)
    assert [case.name for case in across] == [
        f"07_t1 → 07_t1-deformed-{sets.SEED}",
        f"19_t1 → 19_t1-deformed-{sets.SEED + 1}",
    ]


@pytest.fixture(scope="module", params=["LAS", "oblique"])
def known(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("known")
    grid = centred_grid(request.param, (50, 56, 46))
    save_volume(folder / "a_t1.nii.gz", volume_of(head, grid))
    save_labels(folder / "a_labels.nii.gz", volume_of(head_labels, grid))
    save_volume(folder / "b_t1.nii.gz", volume_of(head, grid))
    save_labels(folder / "b_labels.nii.gz", volume_of(head_labels, grid))
    moving = labelled_pairs(folder)[0].moving
    return deformed(moving, moving.image, 1, folder)


def test_the_known_field_leads_back_to_the_original(known):
    """By our own warp, which other tests hold to SciPy and ITK; the set is made by SciPy."""
    pair, truth = known.load(), read_displacement(known.true_field)
    assert truth.grid.matches(pair.fixed.grid)
    labels = warp_volume(pair.moving_labels, truth, "nearest").data
    # Roundings decide at a few borders.
    assert np.mean(labels == pair.fixed_labels.data) > 0.999
    for label in (1, 2, 7):
        middle = center_of_mass(pair.fixed_labels.data == label)
        there = apply_affine(truth.grid.affine, middle)
        there = there + truth.vectors_mm[tuple(np.round(middle).astype(int))]
        moving = center_of_mass(pair.moving_labels.data == label)
        there_really = apply_affine(pair.moving.grid.affine, moving)
        np.testing.assert_allclose(there, there_really, atol=2.5)  # a label is not its middle


def test_the_known_field_is_realistic_and_does_not_fold(known):
    found = regularity(read_displacement(known.true_field))
    assert found["nonpositive_jacobian_percent"] == found["nondiffeomorphic_volume_percent"] == 0
    assert 0.1 < found["sd_log_jacobian"] < 0.4


def test_errors_are_distances_from_the_truth_inside_the_brain(known):
    pair, truth = known.load(), read_displacement(known.true_field)
    assert errors_mm(truth, truth, pair.fixed)["error_max_mm"] == 0
    inside = pair.fixed.data != 0
    vectors = truth.vectors_mm.copy()
    vectors[~inside] += 100
    vectors[inside] += (2, -1, 2)
    off = errors_mm(DisplacementField(truth.grid, vectors), truth, pair.fixed)
    assert off == pytest.approx({f"error_{key}_mm": 3 for key in ("mean", "p95", "max")}, abs=1e-4)


def test_colin_and_mni_have_their_tissues_in_common_places(tmp_path):
    pytest.importorskip("nilearn", reason="needs nilearn, of the extra benchmarks")
    (case,) = colin_to_mni(tmp_path, tmp_path)
    pair = case.load()
    for tissues in (pair.moving_labels, pair.fixed_labels):
        values, counts = np.unique(tissues.data, return_counts=True)
        litres = dict(
            zip(values.tolist(), counts * np.prod(tissues.grid.spacing) / 1e6, strict=True)
        )
        # An adult has about 0.7 l of grey and 0.5 l of white matter.
        assert set(litres) == {0, sets.GREY, sets.WHITE}
        assert 0.4 < litres[sets.GREY] < 1.2
        assert 0.3 < litres[sets.WHITE] < 1.0

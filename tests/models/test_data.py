from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from paramorph.data import (
    DataError,
    Split,
    SubjectFiles,
    find_subjects,
    labelled_pairs,
    preparation,
    prepare_subjects,
)
from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.errors import AlignmentError, VolumeError
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.images.volume import load_labels, load_volume
from paramorph_rt.steps.preparation import network_grid_for

SPEC = InputSpec(GridSpec((32, 32, 32), (2.0, 2.0, 2.0), "RAS"), IntensitySpec(0.0, 100.0))
SILENT = len  # takes a line and says nothing


def write_subject(folder, name, centre=(0.0, 0.0, 0.0), seed=0, labels=True):
    """An ellipsoid with an off-centre core, on an LAS grid."""
    affine = np.diag([-1.5, 1.5, 2.0, 1.0])
    affine[:3, 3] = [30, -33, -36]
    axes = np.meshgrid(*[np.arange(n) for n in (42, 44, 36)], indexing="ij")
    points = np.stack(axes, -1) @ affine[:3, :3].T + affine[:3, 3] - centre
    radius = np.linalg.norm(points / [20, 24, 22], axis=-1)
    core = np.linalg.norm((points - [6, 4, -3]) / [7, 5, 8], axis=-1) < 1
    noise = np.random.default_rng(seed).normal(0, 2, radius.shape)
    image = (radius < 1) * (100 + 60 * core + noise)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), folder / f"{name}_t1.nii.gz")
    if labels:
        label_map = (radius < 1).astype(np.uint8) + core
        nib.save(nib.Nifti1Image(label_map, affine), folder / f"{name}_labels.nii.gz")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "volumes"
    path.mkdir()
    write_subject(path, "a")
    write_subject(path, "b", centre=(3.0, -4.0, 2.0), seed=1)
    write_subject(path, "c", seed=2, labels=False)
    return path


def test_volumes_are_found_with_their_labels(folder):
    subjects = find_subjects(folder)
    assert [(s.name, s.image.name, s.labels and s.labels.name) for s in subjects] == [
        ("a", "a_t1.nii.gz", "a_labels.nii.gz"),
        ("b", "b_t1.nii.gz", "b_labels.nii.gz"),
        ("c_t1", "c_t1.nii.gz", None),
    ]


def test_folders_that_cannot_be_used_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="expected a folder of volumes, found none"):
        find_subjects(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"expected \.nii, \.nii\.gz or \.hdr volumes, found none"):
        find_subjects(tmp_path)
    (folder / "a_t1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"a_labels\.nii\.gz: expected its volume beside it"):
        find_subjects(folder)


def test_subjects_are_aligned_to_the_reference(folder, tmp_path):
    files = find_subjects(folder)
    a, b, _ = prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)
    assert a.image.shape == b.image.shape == (32, 32, 32)
    assert (b.image.min(), b.image.max()) == (0, 1)
    for label, overlap in ((1, 0.9), (2, 0.75)):  # the core has some 150 voxels
        both = (a.labels == label) & (b.labels == label)
        sizes = (a.labels == label).sum() + (b.labels == label).sum()
        assert 2 * both.sum() / sizes > overlap


def test_subjects_may_stay_where_they_are(folder, tmp_path):
    files = find_subjects(folder)
    aligned = prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)
    stayed = prepare_subjects(
        files, files[0], SPEC, tmp_path / "cache", report=SILENT, affine=False
    )
    assert np.array_equal(stayed[0].image, aligned[0].image)  # the reference itself
    grid = network_grid_for(load_volume(files[0].image), SPEC)
    labels = resample_to_grid(load_labels(files[1].labels), grid, None, "nearest")
    assert np.array_equal(stayed[1].labels, labels)
    assert not np.array_equal(stayed[1].labels, aligned[1].labels)


def test_a_second_run_only_reads(folder, tmp_path, monkeypatch):
    files = find_subjects(folder)
    first = prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)
    monkeypatch.setattr(preparation, "_prepare_into", None)  # calling it would fail
    second = prepare_subjects(files, files[0], SPEC, tmp_path / "cache")
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one.image, two.image)


def test_changed_content_is_prepared_again(folder, tmp_path):
    files = find_subjects(folder)
    prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)
    write_subject(folder, "b", seed=7)
    seen = []
    prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=seen.append)
    assert seen == ["prepared b"]


def test_a_damaged_volume_is_named(folder, tmp_path):
    (folder / "b_t1.nii.gz").write_bytes((folder / "b_t1.nii.gz").read_bytes()[:4000])
    files = find_subjects(folder)
    with pytest.raises(VolumeError, match=r"b_t1\.nii\.gz"):
        prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)


def test_two_workers_prepare_what_one_does(folder, tmp_path):
    files = find_subjects(folder)
    one = prepare_subjects(files, files[0], SPEC, tmp_path / "one", report=SILENT)
    seen = []
    two = prepare_subjects(files, files[0], SPEC, tmp_path / "two", 2, seen.append)
    assert sorted(seen) == ["prepared a", "prepared b", "prepared c_t1"]
    assert [subject.name for subject in two] == ["a", "b", "c_t1"]
    for serial, parallel in zip(one, two, strict=True):
        assert np.array_equal(serial.image, parallel.image)
        assert (serial.labels is None) == (parallel.labels is None)
        assert serial.labels is None or np.array_equal(serial.labels, parallel.labels)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_defect_stops_before_anything_is_prepared(folder, tmp_path):
    """The third file is bad; the check meets it before the first is aligned."""
    image = nib.load(folder / "c_t1.nii.gz")
    data = image.get_fdata()
    data[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(data.astype(np.float32), image.affine), folder / "c_t1.nii.gz")
    files = find_subjects(folder)
    for workers in (1, 2):
        with pytest.raises(VolumeError, match=r"volumes/c_t1\.nii\.gz: expected finite intensiti"):
            prepare_subjects(files, files[0], SPEC, tmp_path / "cache", workers)
    assert not list((tmp_path / "cache").iterdir())


def test_a_restart_prepares_only_what_is_missing(folder, tmp_path, monkeypatch):
    files = find_subjects(folder)
    original = preparation._prepare_into

    def fail_at_b(path, subject, *others):
        if subject.name == "b":
            raise KeyboardInterrupt
        original(path, subject, *others)

    monkeypatch.setattr(preparation, "_prepare_into", fail_at_b)
    with pytest.raises(DataError, match="preparation: interrupted; start again"):
        prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)
    monkeypatch.setattr(preparation, "_prepare_into", original)
    seen = []
    prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=seen.append)
    assert seen == ["prepared b", "prepared c_t1"]


def test_a_killed_worker_is_explained():
    with (
        pytest.raises(DataError, match="one was killed; if memory ran out, lower"),
        preparation._worker_pool(2) as pool,
    ):
        list(preparation._each(pool, os._exit, [(1,), (1,)]))


def test_labels_of_another_shape_are_named_with_both_files(folder, tmp_path):
    labels = nib.Nifti1Image(np.ones((42, 44, 35), np.uint8), np.eye(4))
    nib.save(labels, folder / "b_labels.nii.gz")
    files = find_subjects(folder)
    with pytest.raises(VolumeError, match=r"b_labels.nii.gz: expected the grid of .*b_t1.nii.gz"):
        prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)


def test_only_labels_to_keep_are_kept(folder, tmp_path):
    a = find_subjects(folder)[0]
    both = [a, replace(a, keep_labels=(2, 7))]
    everything, kept = prepare_subjects(both, a, SPEC, tmp_path / "cache", report=SILENT)
    assert set(np.unique(everything.labels)) == {0, 1, 2}
    assert np.array_equal(kept.labels, np.where(everything.labels == 2, 2, 0))
    assert np.array_equal(kept.image, everything.image)
    strange = replace(a, keep_labels=(7, 9))
    with pytest.raises(VolumeError, match=r"a_labels.nii.gz: expected some of the 2 labels 7 to 9"):
        prepare_subjects([strange], a, SPEC, tmp_path / "cache", report=SILENT)


def test_subjects_with_equal_file_names_are_told_apart(folder, tmp_path):
    """Of `CASE/t2.nii.gz` only the reference itself keeps its place."""
    cases = []
    for name, source in (("1", "a_t1"), ("2", "b_t1")):
        (tmp_path / name).mkdir()
        image = tmp_path / name / "t2.nii.gz"
        image.write_bytes((folder / f"{source}.nii.gz").read_bytes())
        cases.append(SubjectFiles(name, image, None))
    files = find_subjects(folder)
    _, expected = prepare_subjects(files[:2], files[0], SPEC, tmp_path / "c1", report=SILENT)
    _, got = prepare_subjects(cases, cases[0], SPEC, tmp_path / "c2", report=SILENT)
    assert np.array_equal(got.image, expected.image)


def test_a_subject_that_misses_the_grid_is_named(folder, tmp_path, monkeypatch):
    far_away = np.eye(4)
    far_away[0, 3] = 1000.0  # mm
    found = SimpleNamespace(affine=far_away)
    monkeypatch.setattr(preparation, "align_affine", lambda moving, fixed: found)
    files = find_subjects(folder)
    with pytest.raises(AlignmentError, match=r"b_t1\.nii\.gz: expected to lie upon .*a_t1"):
        prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)


def test_caches_of_earlier_versions_stay_valid(tmp_path):
    """Digest of a fixed specification and fixed bytes, as the first version made it."""
    for name in ("image", "labels", "reference"):
        (tmp_path / name).write_bytes(name.encode())
    files = SubjectFiles("s", tmp_path / "image", tmp_path / "labels")
    reference = SubjectFiles("r", tmp_path / "reference", None)
    assert preparation._fingerprint(files, reference, SPEC, True) == "e97e50d9031e6b7f"
    assert preparation._fingerprint(files, reference, SPEC, False) != "e97e50d9031e6b7f"
    with_labels = replace(files, keep_labels=(1,))
    assert preparation._fingerprint(with_labels, reference, SPEC, True) != "e97e50d9031e6b7f"


def test_a_damaged_cache_file_is_named(folder, tmp_path):
    files = find_subjects(folder)[:1]
    prepare_subjects(files, files[0], SPEC, tmp_path / "cache", report=SILENT)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"{path.name}: expected a prepared subject, got a damag"):
        prepare_subjects(files, files[0], SPEC, tmp_path / "cache")


def test_a_cache_that_cannot_be_made_is_named(folder, tmp_path):
    files = find_subjects(folder)
    (tmp_path / "cache").write_text("a file", encoding="utf-8")
    with pytest.raises(DataError, match="cache: expected a folder for the cache"):
        prepare_subjects(files, files[0], SPEC, tmp_path / "cache")


def test_a_negative_number_of_workers_is_refused(folder, tmp_path):
    files = find_subjects(folder)
    with pytest.raises(DataError, match="workers: expected 0 or more processes, got -1"):
        prepare_subjects(files, files[0], SPEC, tmp_path / "cache", workers=-1)


def test_the_reference_is_found_by_name():
    a, b, c = (SubjectFiles(name, None, None) for name in "abc")
    assert Split([b, c], [a]).reference is b
    assert Split([b, c], [a], "a").reference is a
    with pytest.raises(DataError, match="expected the name of a subject, got d; choose one of a"):
        _ = Split([b, c], [a], "d").reference


def test_a_label_map_belongs_to_the_longest_name_that_fits(tmp_path):
    for name in ("s_1_x_t1", "s_1_x_labels", "s_1_t1", "s_1_labels"):
        (tmp_path / f"{name}.nii.gz").touch()
    assert [(s.name, s.labels.name) for s in find_subjects(tmp_path)] == [
        ("s_1", "s_1_labels.nii.gz"),
        ("s_1_x", "s_1_x_labels.nii.gz"),
    ]


def test_one_volume_in_two_files_is_refused(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"a\.nii\.gz: expected one file of that name, found a"):
        find_subjects(tmp_path)


def test_each_labelled_volume_goes_to_the_next_and_the_last_to_the_first(tmp_path):
    for name in ("p", "q", "r"):
        (tmp_path / f"{name}_t1.nii.gz").touch()
        (tmp_path / f"{name}_labels.nii.gz").touch()
    (tmp_path / "unlabelled.nii.gz").touch()
    names = [(moving.name, fixed.name) for moving, fixed in labelled_pairs(tmp_path)]
    assert names == [("p", "q"), ("q", "r"), ("r", "p")]
    for name in ("q", "r"):
        (tmp_path / f"{name}_labels.nii.gz").unlink()
    with pytest.raises(DataError, match=r"expected at least two volumes with NAME_labels.*got 1"):
        labelled_pairs(tmp_path)

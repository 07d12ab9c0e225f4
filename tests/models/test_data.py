from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

import paramorph.data as data
from paramorph.data import DataError, find_subjects, prepare_subjects
from paramorph_rt.bundle import GridSpec, InputSpec, IntensitySpec
from paramorph_rt.errors import VolumeError

SPEC = InputSpec(GridSpec((32, 32, 32), (2.0, 2.0, 2.0), "RAS"), IntensitySpec(0.0, 100.0))


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
    with pytest.raises(DataError, match=r"expected \.nii or \.nii\.gz volumes, found none"):
        find_subjects(tmp_path)
    (folder / "a_t1.nii.gz").unlink()
    with pytest.raises(DataError, match=r"a_labels\.nii\.gz: expected its volume beside it"):
        find_subjects(folder)


def test_subjects_are_aligned_to_the_reference(folder, tmp_path):
    files = find_subjects(folder)
    a, b, _ = prepare_subjects(files, files[0], SPEC, tmp_path / "cache", lambda _: None)
    assert a.image.shape == b.image.shape == (32, 32, 32)
    assert (b.image.min(), b.image.max()) == (0, 1)
    for label, overlap in ((1, 0.9), (2, 0.75)):  # the core has some 150 voxels
        both = (a.labels == label) & (b.labels == label)
        sizes = (a.labels == label).sum() + (b.labels == label).sum()
        assert 2 * both.sum() / sizes > overlap


def test_a_second_run_only_reads(folder, tmp_path, monkeypatch):
    files = find_subjects(folder)
    first = prepare_subjects(files, files[0], SPEC, tmp_path / "cache", lambda _: None)
    monkeypatch.setattr(data, "_prepare", None)  # calling it would fail
    second = prepare_subjects(files, files[0], SPEC, tmp_path / "cache")
    for one, two in zip(first, second, strict=True):
        assert np.array_equal(one.image, two.image)


def test_changed_content_is_prepared_again(folder, tmp_path):
    files = find_subjects(folder)
    prepare_subjects(files, files[0], SPEC, tmp_path / "cache", lambda _: None)
    write_subject(folder, "b", seed=7)
    seen = []
    prepare_subjects(files, files[0], SPEC, tmp_path / "cache", seen.append)
    assert seen == ["prepared b"]


def test_a_damaged_volume_is_named(folder, tmp_path):
    (folder / "b_t1.nii.gz").write_bytes((folder / "b_t1.nii.gz").read_bytes()[:4000])
    files = find_subjects(folder)
    with pytest.raises(VolumeError, match=r"b_t1\.nii\.gz"):
        prepare_subjects(files, files[0], SPEC, tmp_path / "cache", lambda _: None)

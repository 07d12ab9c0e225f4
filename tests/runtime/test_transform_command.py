from __future__ import annotations

import os
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from paramorph_rt import Registration
from paramorph_rt.cli import main
from paramorph_rt.images.volume import save_labels, save_volume
from paramorph_rt.transforms.formats import read_transform

from .phantoms import centred_grid, head, head_labels, volume_of, world_points


@pytest.fixture(scope="module")
def folder(tmp_path_factory, bundle_path):
    """A pair, and the results of its registration in `out`."""
    folder = tmp_path_factory.mktemp("pair")
    moving = volume_of(head, centred_grid("LAS", (46, 52, 40)), "moving.nii.gz")
    fixed = volume_of(head, centred_grid("oblique", (44, 48, 50)), "fixed.nii.gz")
    labels = volume_of(head_labels, moving.grid)
    save_volume(folder / "moving.nii.gz", moving)
    save_volume(folder / "fixed.nii.gz", fixed)
    save_labels(folder / "labels.nii.gz", labels)
    shift = np.eye(4)
    shift[:3, 3] = (2.0, -1.0, 1.5)
    result = Registration(bundle_path)(moving, fixed, labels, affine=False, initial=shift, refine=0)
    result.save(folder / "out")
    return folder


@pytest.fixture
def transform(folder, tmp_path, monkeypatch):
    """Runs `paramorph-rt transform` in a folder of its own that sees the pair."""
    monkeypatch.chdir(tmp_path)
    for name in ("moving.nii.gz", "fixed.nii.gz", "labels.nii.gz", "out"):
        (tmp_path / name).symlink_to(folder / name)
    return lambda line: main(["transform", *line.split()])


def voxels(path: str) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_applying_the_displacement_gives_the_warped_image_and_labels(transform):
    pair = "--moving moving.nii.gz --fixed fixed.nii.gz"
    assert transform(f"apply out/displacement.nii.gz {pair} --out w.nii.gz") == 0
    np.testing.assert_allclose(voxels("w.nii.gz"), voxels("out/warped.nii.gz"), atol=1e-2)
    pair = "--moving labels.nii.gz --fixed fixed.nii.gz --interpolation nearest"
    assert transform(f"apply out/displacement.nii.gz {pair} --out l.nii.gz") == 0
    # A sample exactly between two voxels may fall to either.
    assert (voxels("l.nii.gz") != voxels("out/warped_labels.nii.gz")).mean() < 1e-3
    assert voxels("l.nii.gz").dtype == np.int16


def test_affine_is_inverted_on_the_way_and_in_a_file(transform, tmp_path):
    assert transform("invert out/affine.tfm --out back.mat") == 0
    affine, back = (read_transform(tmp_path / name) for name in ("out/affine.tfm", "back.mat"))
    np.testing.assert_allclose(back @ affine, np.eye(4), atol=1e-12)
    assert transform("compose out/affine.tfm [out/affine.tfm,1] --out nothing.txt") == 0
    np.testing.assert_allclose(read_transform(tmp_path / "nothing.txt"), np.eye(4), atol=1e-12)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits of file sizes")
@pytest.mark.parametrize("out", ["o.tfm", "o.txt", "o.mat", "o.h5", "f.h5"])
def test_a_full_disk_leaves_no_transform(transform, tmp_path, out):
    source = "out/affine.tfm" if out[0] == "o" else FIELD
    program = (
        "import resource, sys; from paramorph_rt.cli import main\n"
        "import SimpleITK, isal  # what is written for Python itself is none of ours\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"sys.exit(main(['transform', 'convert', {source!r}, '--out', {out!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert re.match(rf"paramorph-rt: {out}: expected to write", done.stderr.splitlines()[-1])
    assert [path.name for path in tmp_path.iterdir() if "paramorph" in path.name] == []
    assert not (tmp_path / out).exists()


def test_inverse_of_a_field_lies_on_the_moving_image_and_undoes_it(transform, tmp_path, capsys):
    assert transform("invert out/displacement.nii.gz --moving moving.nii.gz --out b.nii.gz") == 0
    printed = capsys.readouterr().out
    assert "there and back, from moving: 0.0" in printed
    assert "wrote b.nii.gz" in printed
    np.testing.assert_allclose(
        nib.load("b.nii.gz").affine, nib.load("moving.nii.gz").affine, atol=1e-4
    )
    assert transform("compose out/displacement.nii.gz b.nii.gz --out around.nii.gz") == 0
    around = read_transform(tmp_path / "around.nii.gz")
    middle = np.linalg.norm(world_points(around.grid), axis=-1) < 15
    assert np.abs(around.vectors_mm[middle]).max() < 0.1  # interpolated between voxels twice


@pytest.mark.parametrize(
    ("format", "field", "affine", "source"),
    [
        ("itk", "f.h5", "a.h5", ""),
        ("fsl", "f.nii.gz", "a.mat", "--from fsl"),
        ("niftyreg", "f.nii.gz", "a.txt", "--from niftyreg"),
        ("freesurfer", "f.mgz", "a.lta", ""),
    ],
)
def test_conversion_there_and_back(transform, tmp_path, format, field, affine, source):
    pair = "--moving moving.nii.gz --fixed fixed.nii.gz"
    for original, name, suffix in (
        ("out/displacement.nii.gz", field, ".nii.gz"),
        ("out/affine.tfm", affine, ".tfm"),
    ):
        assert transform(f"convert {original} --to {format} {pair} --out {name}") == 0
        assert transform(f"convert {name} {source} {pair} --out back{suffix}") == 0
        before, after = (read_transform(tmp_path / path) for path in (original, f"back{suffix}"))
        if suffix == ".tfm":
            np.testing.assert_allclose(after, before, atol=1e-4)
        else:
            np.testing.assert_allclose(after.vectors_mm, before.vectors_mm, atol=1e-3)


PAIR = "--moving moving.nii.gz --fixed fixed.nii.gz"
FIELD = "out/displacement.nii.gz"
BAD_CALLS = {
    f"apply {FIELD} {PAIR} --out out/warped.nii.gz": "pass --force to replace it",
    f"apply {FIELD} {PAIR} --out w.tfm": "expected a name in .nii or .nii.gz",
    f"apply {FIELD} {PAIR} --out nowhere/w.nii.gz": "make it first",
    f"apply {FIELD} {PAIR} --interpolation nearest --out w.nii.gz": "expected whole numbers",
    f"apply [{FIELD},1] {PAIR} --out w.nii.gz": "run paramorph-rt transform invert first",
    f"apply nothing.nii.gz {PAIR} --out w.nii.gz": "found none; check the path",
    f"apply fixed.nii.gz {PAIR} --out w.nii.gz": "states its format, got NIfTI intent 0",
    f"invert {FIELD} --out b.nii.gz": "pass --moving",
    "invert out/affine.tfm --out b.nii.gz": "for an affine in the itk format",
    "invert out/affine.tfm --out out": "got a folder",
    f"invert {FIELD} {PAIR} --out nowhere/b.nii.gz": "make it first",
    f"convert {FIELD} --to fsl --out f.nii.gz": "paramorph-rt: f.nii.gz: expected the moving image",
    f"convert out/affine.tfm --to freesurfer {PAIR} --out a.mgz": "expected .lta for an affine",
    f"compose out/affine.tfm {FIELD} --out c.nii.gz": "pass --fixed",
    f"compose {FIELD} {FIELD} --from fsl {PAIR} --out c.nii.gz": "convert each to itk first",
}


def snapshot(folder) -> dict[str, float]:
    return {str(path): path.stat().st_mtime for path in [*folder.iterdir(), *folder.glob("out/*")]}


@pytest.mark.parametrize("line", BAD_CALLS)
def test_bad_calls_are_one_sentence_and_leave_nothing(transform, tmp_path, capsys, line):
    before = snapshot(tmp_path)
    assert transform(line) == 1
    (sentence,) = capsys.readouterr().err.strip().splitlines()
    assert sentence.startswith("paramorph-rt: ")
    assert BAD_CALLS[line] in sentence
    assert snapshot(tmp_path) == before


def test_force_replaces(transform, tmp_path):
    (tmp_path / "b.tfm").write_text("old", encoding="utf-8")
    assert transform("invert out/affine.tfm --out b.tfm --force") == 0
    assert "AffineTransform" in (tmp_path / "b.tfm").read_text(encoding="utf-8")


def test_failure_while_writing_leaves_the_earlier_result(transform, tmp_path, monkeypatch):
    (tmp_path / "b.tfm").write_text("old", encoding="utf-8")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("paramorph_rt.transforms.itk.write_affine", full)
    assert transform("invert out/affine.tfm --out b.tfm --force") == 1
    assert (tmp_path / "b.tfm").read_text(encoding="utf-8") == "old"
    assert not list(tmp_path.glob(".paramorph*"))


@pytest.mark.parametrize("action", ["apply", "invert", "compose", "convert"])
def test_help_explains_order_and_shows_an_example(action, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["transform", action, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "from left to right" in printed
    assert f"paramorph-rt transform {action} " in printed

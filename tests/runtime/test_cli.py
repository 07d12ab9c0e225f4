from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

import paramorph_rt
from paramorph_rt.cli import main
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.images.volume import load_grid, save_labels, save_volume
from paramorph_rt.transforms import Images, itk
from paramorph_rt.transforms.formats import read_transform, write_transform

from .phantoms import (
    centred_grid,
    head,
    head_labels,
    read_manifest,
    volume_of,
    write_bundle,
    write_manifest,
    write_nifti,
)


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    """Run a fresh interpreter that finds the package where this one found it."""
    home = str(Path(paramorph_rt.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": home},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.fixture
def files(tmp_path, zero_bundle_path) -> dict[str, Path]:
    """A pair with labels on disk, and the options of a good call."""
    moving = centred_grid("LAS", (46, 52, 40), (1, 1, 1))
    fixed = centred_grid("oblique", (54, 58, 50), (1, 1, 1))
    folder = tmp_path / "in"
    folder.mkdir()
    for name, grid in (("moving", moving), ("fixed", fixed)):
        save_volume(folder / f"{name}.nii.gz", volume_of(head, grid))
        save_labels(folder / f"{name}_labels.nii.gz", volume_of(head_labels, grid))
    return {
        "--moving": folder / "moving.nii.gz",
        "--fixed": folder / "fixed.nii.gz",
        "--moving-labels": folder / "moving_labels.nii.gz",
        "--fixed-labels": folder / "fixed_labels.nii.gz",
        "--model": zero_bundle_path,
        "--out-dir": tmp_path / "out",
    }


def infer(files: dict[str, Path], *flags: str) -> int:
    return main(["infer", *(str(word) for option in files.items() for word in option), *flags])


def test_json_goes_to_stdout_and_progress_to_stderr(files, capsys):
    assert infer(files, "--json", "--threads", "1") == 0
    captured = capsys.readouterr()
    stored = json.loads((files["--out-dir"] / "metrics.json").read_text(encoding="utf-8"))
    assert json.loads(captured.out) == stored
    assert stored["dice"]["after"]["mean"] > 0.9
    assert "affine …" in captured.err
    assert "network: " in captured.err


def test_backend_and_precision_are_recorded(files, capsys):
    chosen = ("--backend", "onnxruntime", "--precision", "fp32")
    assert infer(files, "--no-affine", "--json", *chosen) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert (metrics["backend"], metrics["precision"]) == ("onnxruntime-cpu", "fp32")


def test_precision_that_the_backend_lacks_is_one_sentence(files, capsys):
    assert infer(files, "--backend", "onnxruntime", "--precision", "bf16") == 1
    assert "paramorph-rt: onnxruntime: expected precision fp32" in capsys.readouterr().err
    assert not files["--out-dir"].exists()


def test_table_is_for_people(files, capsys):
    assert infer(files, "--no-affine") == 0
    printed = capsys.readouterr().out
    means = "mean Dice", "mean ASSD (mm)", "mean HD95 (mm)", "mean NSD"
    for word in ("before", "after", "NCC", *means, "folded voxels", "folded volume", "results in"):
        assert word in printed


def test_second_run_needs_force(files, capsys):
    assert infer(files) == 0
    before = (files["--out-dir"] / "warped.nii.gz").stat()
    capsys.readouterr()
    assert infer(files) == 1
    error = capsys.readouterr().err
    assert "pass --force" in error
    assert "network" not in error  # refused before the work
    assert (files["--out-dir"] / "warped.nii.gz").stat() == before
    assert infer(files, "--force") == 0


def test_more_results_on_request(files, tmp_path, capsys):
    save_volume(tmp_path / "t2.nii.gz", volume_of(head, centred_grid("SPR", (30, 30, 30))))
    itk.write_affine(tmp_path / "start.tfm", np.eye(4))
    options = ["--inverse", "--affine", "rigid", "--initial-transform", tmp_path / "start.tfm"]
    options += ["--output-grid", "moving", "--interpolation", "bspline"]
    options += ["--also", tmp_path / "t2.nii.gz", "--also-labels", files["--moving-labels"]]
    assert infer(files, *map(str, options)) == 0
    assert "there and back, from fixed: 0.0" in capsys.readouterr().out
    out = files["--out-dir"]
    error = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["inverse_consistency_mm"]
    for way in ("from_moving", "from_fixed"):
        assert 0 <= error[way]["mean"] <= error[way]["p99"] <= error[way]["max"] < 0.3
    matrix = itk.read_affine(out / "affine.tfm")[:3, :3]
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-9)
    moving = load_grid(files["--moving"])
    along = {"t2.nii.gz", "moving_labels.nii.gz"}
    assert {path.name for path in (out / "also_warped").iterdir()} == along
    for name in ("warped.nii.gz", *(f"also_warped/{name}" for name in along)):
        assert load_grid(out / name).matches(moving)
    labels = [out / "warped_labels.nii.gz", out / "also_warped/moving_labels.nii.gz"]
    np.testing.assert_array_equal(*(nib.load(path).get_fdata() for path in labels))
    assert infer(files, "--force") == 0
    assert not (out / "also_warped").exists()
    assert not (out / "inverse_displacement.nii.gz").exists()


def test_composite_gives_the_warped_image_in_other_programs(files, tmp_path, bundle_path):
    files["--model"] = bundle_path
    assert infer(files, "--itk-composite") == 0
    out = files["--out-dir"]
    warped = nib.load(out / "warped.nii.gz").get_fdata()
    path = str(out / "composite.h5")
    moving, fixed = (sitk.ReadImage(str(files[f])) for f in ("--moving", "--fixed"))
    air = float(sitk.GetArrayViewFromImage(moving).min())
    theirs = sitk.Resample(moving, fixed, sitk.ReadTransform(path), sitk.sitkLinear, air)
    inner = warped > 20
    assert inner.sum() > 20_000
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(theirs).T[inner], warped[inner], atol=0.05, rtol=1e-3
    )
    # Ours, read back and made one field.
    whole = read_transform(Path(path))
    complete = itk.read_displacement(out / "displacement.nii.gz")
    np.testing.assert_allclose(whole.vectors_mm, complete.vectors_mm, atol=2e-3)
    ants = pytest.importorskip("ants")
    images = [ants.image_read(str(files[f])) for f in ("--fixed", "--moving")]
    by_ants = ants.apply_transforms(*images, [path]).numpy()
    np.testing.assert_allclose(by_ants[inner], warped[inner], atol=0.05, rtol=1e-3)
    assert infer(files, "--force") == 0
    assert not (out / "composite.h5").exists()


def test_initial_transform_of_fsl_is_that_of_itk(files, tmp_path, capsys):
    start = np.eye(4)
    start[:3] += np.random.default_rng(1).normal(scale=0.02, size=(3, 4))
    images = Images(*(load_grid(files[f]) for f in ("--fixed", "--moving")))
    write_transform(tmp_path / "start.mat", start, "fsl", images)
    options = ("--no-affine", "--initial-transform", str(tmp_path / "start.mat"))
    assert infer(files, *options, "--initial-transform-format", "fsl") == 0
    np.testing.assert_allclose(itk.read_affine(files["--out-dir"] / "affine.tfm"), start, atol=1e-9)
    assert infer(files, *options, "--force") == 1
    assert "say with --initial-transform-format" in capsys.readouterr().err


def test_json_into_a_file_and_short_options(files, tmp_path, capsys):
    words = [("-m", "--moving"), ("-f", "--fixed"), ("-o", "--out-dir"), ("--model", "--model")]
    call = ["infer", *(str(word) for short, long in words for word in (short, files[long]))]
    assert main([*call, "--json", str(tmp_path / "m.json")]) == 0
    assert "results in" in capsys.readouterr().out
    told = [
        path.read_bytes() for path in (tmp_path / "m.json", files["--out-dir"] / "metrics.json")
    ]
    assert told[0] == told[1]
    assert main([*call, "--force", "--json", str(tmp_path / "no/m.json")]) == 1
    assert "expected a folder to write into" in capsys.readouterr().err


def spoil_nan(files):
    image = nib.load(files["--fixed"])
    data = image.get_fdata()
    data[3, 4, 5] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), files["--fixed"])


def spoil_truncated(files):
    content = files["--moving"].read_bytes()
    files["--moving"].write_bytes(content[: len(content) // 2])


def spoil_affine(files, affine):
    image = nib.load(files["--moving"])
    image.set_sform(affine, code=1)
    image.set_qform(None, code=0)
    data = image.get_fdata(dtype=np.float32)
    spoiled = nib.Nifti1Image(data, None, image.header)
    nib.save(spoiled, files["--moving"])


def spoil_hash(files):
    folder = files["--out-dir"].parent / "bundle"
    files["--model"] = write_bundle(folder, np.zeros((3, 20, 24, 16), np.float32))
    manifest = read_manifest(folder)
    manifest["files"]["registration.onnx"]["sha256"] = "0" * 64
    write_manifest(folder, manifest)


def spoil_far(files):
    for name in ("--moving", "--moving-labels"):
        image = nib.load(files[name])
        affine = image.affine.copy()
        affine[0, 3] += 500
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), files[name])


BAD_INPUT = {
    "missing file": (lambda f: f["--moving"].unlink(), "found none; check the path"),
    "no NIfTI": (
        lambda f: f["--moving"].write_text("text", encoding="utf-8"),
        "expected a NIfTI file",
    ),
    "truncated": (spoil_truncated, "truncated"),
    "4-D": (lambda f: write_nifti(f["--fixed"], np.ones((5, 6, 7, 2))), "expected a 3-D volume"),
    "NaN": (spoil_nan, "1 voxels of NaN or Inf"),
    "constant": (lambda f: write_nifti(f["--fixed"], np.ones((5, 6, 7))), "constant 1"),
    "singular": (lambda f: spoil_affine(f, np.diag([1, 0, 1, 1])), "singular"),
    "sheared": (lambda f: spoil_affine(f, np.eye(4) + np.eye(4, k=1) * 0.1), "sheared"),
    "labels of another grid": (
        lambda f: f.update({"--moving-labels": f["--fixed-labels"]}),
        "expected the grid of moving.nii.gz",
    ),
    "no labels": (
        lambda f: write_nifti(f["--moving-labels"], np.zeros((5, 6, 7), np.uint8)),
        "at least one label",
    ),
    "no overlap": (spoil_far, "or leave out --no-affine"),
    "no bundle": (lambda f: f.update({"--model": f["--moving"].parent}), "expected a bundle"),
    "wrong hash": (spoil_hash, "the file was altered"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_sentence_and_leaves_nothing(files, capsys, case):
    spoil, match = BAD_INPUT[case]
    spoil(files)
    assert infer(files, "--no-affine") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    sentence = lines[-1]
    assert sentence.startswith("paramorph-rt: ")
    assert match in sentence
    assert "Traceback" not in "".join(lines)
    assert not files["--out-dir"].exists()
    assert not list(files["--out-dir"].parent.glob(".paramorph*"))


def test_field_is_no_initial_transform(files, tmp_path, capsys):
    grid = load_grid(files["--fixed"])
    field = DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))
    itk.write_displacement(tmp_path / "field.nii.gz", field)
    assert infer(files, "--initial-transform", str(tmp_path / "field.nii.gz")) == 1
    assert "pass its affine part" in capsys.readouterr().err


def test_two_files_of_one_name_cannot_be_warped_along(files, capsys):
    assert infer(files, "--also", *[str(files["--moving"])] * 2) == 1
    assert "moving.nii.gz: expected a file name of its own" in capsys.readouterr().err
    assert not files["--out-dir"].exists()


def test_all_volumes_of_a_series_are_warped_like_the_registered_one(files, tmp_path, capsys):
    moving = nib.load(files["--moving"])
    data = np.stack([moving.get_fdata(dtype=np.float32) * factor for factor in (1, 2, 4)], axis=-1)
    series = nib.Nifti1Image(data, moving.affine)
    series.header.set_xyzt_units("mm", "msec")
    series.header.set_zooms((1, 1, 1, 2500))
    for name in ("--moving-labels", "--fixed-labels"):
        del files[name]
    files["--moving"] = tmp_path / "bold.nii.gz"
    nib.save(series, files["--moving"])
    assert infer(files, "--no-affine") == 1
    assert "pass --apply-to-all" in capsys.readouterr().err
    assert infer(files, "--no-affine", "--apply-to-all", "--reference-volume", "3") == 1
    assert "expected a volume from 0 to 2, got 3" in capsys.readouterr().err
    assert infer(files, "--no-affine", "--apply-to-all", "--reference-volume", "1") == 0
    out = files["--out-dir"]
    warped, one = (nib.load(out / f"{name}.nii.gz") for name in ("warped_series", "warped"))
    assert warped.shape == (*one.shape, 3)
    assert warped.header.get_zooms()[3] == 2.5
    np.testing.assert_allclose(warped.affine, one.affine, atol=1e-6)
    for number, factor in enumerate((0.5, 1, 2)):
        expected = factor * one.get_fdata()
        np.testing.assert_allclose(warped.dataobj[..., number], expected, atol=1e-3)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["moving"] == "bold.nii.gz[1]"
    assert infer(files, "--no-affine", "--apply-to-all", "--force", "--output-grid", "moving") == 0
    assert nib.load(out / "warped_series.nii.gz").shape == data.shape


def test_masks_restrict_what_is_compared(files, tmp_path, capsys):
    fixed = nib.load(files["--fixed"])
    half = np.zeros(fixed.shape, np.uint8)
    half[: fixed.shape[0] // 2] = 1
    nib.save(nib.Nifti1Image(half, fixed.affine), tmp_path / "half.nii.gz")
    nib.save(nib.Nifti1Image(half * 0, fixed.affine), tmp_path / "empty.nii.gz")
    for mask, said in (("empty", "got an empty one"), ("half", "expected the grid of moving")):
        option = ("--moving-mask", str(tmp_path / f"{mask}.nii.gz"))
        assert infer(files, *option) == 1
        assert said in capsys.readouterr().err
    assert infer(files, "--no-affine", "--json", "--refine", "off") == 0
    whole = json.loads(capsys.readouterr().out)
    option = ("--fixed-mask", str(tmp_path / "half.nii.gz"), "--refine", "off")
    assert infer(files, "--no-affine", "--json", "--force", *option) == 0
    restricted = json.loads(capsys.readouterr().out)
    image, warped = (
        nib.load(path).get_fdata()
        for path in (files["--fixed"], files["--out-dir"] / "warped.nii.gz")
    )
    within = (half > 0) & (image > image.min() + 0.05 * (np.percentile(image, 99.5) - image.min()))
    expected = np.corrcoef(image[within], warped[within])[0, 1]
    assert restricted["ncc"]["after"] == pytest.approx(expected, abs=1e-3)
    assert restricted["ncc"]["after"] != whole["ncc"]["after"]
    assert restricted["dice"] == whole["dice"]  # of labels, everywhere


def test_affine_and_its_warnings_are_in_the_metrics(files, capsys):
    assert infer(files, "--json") == 0
    metrics = json.loads(capsys.readouterr().out)
    assert not [w for w in metrics["warnings"] if w.startswith("affine")]
    affine = metrics["affine"]
    assert affine["kind"] == "affine"
    assert 0 < affine["mutual_information"]["before"] <= affine["mutual_information"]["after"]
    assert 0.9 < affine["foreground_overlap"] <= 1
    assert infer(files, "--json", "--no-affine", "--force") == 0
    assert json.loads(capsys.readouterr().out)["affine"] is None


def test_start_that_does_not_tell_its_format_gets_advice_that_infer_can_follow(
    files, tmp_path, capsys
):
    (tmp_path / "flirt.mat").write_text("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", encoding="utf-8")
    assert infer(files, "--initial-transform", str(tmp_path / "flirt.mat")) == 1
    error = capsys.readouterr().err
    assert "say with --initial-transform-format what it is." in error
    assert "--from" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["infer"],
        ["infer", "--threads", "0"],
        ["evaluate", "--threads", "two"],
        ["infer", "--affine", "rigid", "--no-affine"],
        ["transform"],
        ["transform", "apply", "t.tfm", "--out", "w.nii"],
        ["transform", "invert", "a.tfm", "b.tfm", "--out", "c.tfm"],
        ["other"],
    ],
)
def test_wrong_usage_is_exit_code_two(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "; see paramorph-rt" in capsys.readouterr().err


def test_help_loads_nothing_heavy():
    """What makes it come at once; its time is measured by benchmarks/startup.py."""
    program = (
        "import sys; from paramorph_rt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit(len({'numpy', 'nibabel', 'SimpleITK'} & set(sys.modules)))"
    )
    result = run_python("-c", program)
    assert result.returncode == 0
    assert "infer" in result.stdout


def test_help_of_infer_names_every_option():
    result = run_python("-m", "paramorph_rt", "infer", "--help")
    for option in (
        *("--moving", "--fixed", "--out-dir", "--model", "--moving-labels", "--fixed-labels"),
        *("--no-affine", "--threads", "--force", "--json", "--affine", "--initial-transform"),
        *("--inverse", "--output-grid", "--interpolation", "--also", "--also-labels"),
        *("--backend", "--precision", "--moving-mask", "--fixed-mask", "--apply-to-all"),
        *("--reference-volume", "--bids-names"),
    ):
        assert option in result.stdout


def test_importing_the_package_loads_nothing_heavy():
    program = (
        "import sys, paramorph_rt, paramorph_rt.cli;"
        "heavy = {'torch', 'onnx', 'scipy', 'numpy', 'nibabel', 'SimpleITK', 'onnxruntime'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = run_python("-c", program)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_registering_needs_the_base_install_only():
    # nibabel takes scipy when it is there, so ask for what must work without it instead.
    program = (
        "import sys;"
        "sys.modules.update(dict.fromkeys(['torch', 'onnx', 'scipy', 'medpy', 'matplotlib']));"
        "import paramorph_rt.registration"
    )
    result = run_python("-c", program)
    assert (result.returncode, result.stderr) == (0, "")


def test_public_names_exist():
    assert all(getattr(paramorph_rt, name) for name in paramorph_rt.__all__ if name[0] != "_")
    assert set(paramorph_rt.__all__) <= set(dir(paramorph_rt))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = paramorph_rt.nothing


def test_runtime_imports_no_other_wing():
    for path in Path(paramorph_rt.__file__).parent.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in {"paramorph", "paramorph_export", "torch"}

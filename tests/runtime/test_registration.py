from __future__ import annotations

import json
import logging
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Timer

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import map_coordinates

from paramorph_rt import Registration, RegistrationResult
from paramorph_rt.backends import choose_backend
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BackendError, VolumeError
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, load_volume, save_labels, save_volume
from paramorph_rt.loaded import loaded
from paramorph_rt.request import Options
from paramorph_rt.steps.foreground import foreground_threshold
from paramorph_rt.steps.preparation import network_grid_for
from paramorph_rt.system.threads import Later

from .phantoms import (
    NETWORK_SHAPE,
    centred_grid,
    head,
    head_labels,
    smooth_displacement_vox,
    volume_of,
    world_points,
    write_bundle,
)

# Moving and fixed differ in orientation, spacing, shape and handedness.
GRIDS = {
    "RAS-RAS": (("RAS", (46, 52, 40), (1, 1, 1)), ("RAS", (44, 50, 42), (1, 1, 1))),
    "LAS-RAS": (("LAS", (46, 52, 40), (1, 1, 1)), ("RAS", (44, 50, 42), (1, 1, 1))),
    "RAS-LPS": (("RAS", (46, 52, 40), (1, 1, 1)), ("LPS", (44, 50, 42), (1, 1, 1))),
    "LPS-oblique": (("LPS", (46, 52, 40), (1, 1, 1)), ("oblique", (54, 58, 50), (1, 1, 1))),
    "oblique-LAS": (("oblique", (56, 58, 52), (1, 1, 1)), ("LAS", (44, 50, 42), (1, 1, 1))),
    "SPR-anisotropic": (("SPR", (40, 52, 46), (1, 1, 1)), ("LAS", (50, 56, 14), (0.9, 0.9, 3))),
}


def pair_on(key: str) -> tuple[Volume, Volume]:
    moving, fixed = GRIDS[key]
    return (
        volume_of(head, centred_grid(*moving), "moving.nii.gz"),
        volume_of(head, centred_grid(*fixed), "fixed.nii.gz"),
    )


def true_displacement_mm(fixed: Volume, inputs, displacement_vox: np.ndarray) -> np.ndarray:
    """The network's displacement at the fixed voxels, by scipy and nibabel alone."""
    network = network_grid_for(fixed, inputs)
    index = nib.affines.apply_affine(
        np.linalg.inv(network.affine) @ fixed.grid.affine,
        np.stack(np.meshgrid(*map(np.arange, fixed.grid.shape), indexing="ij"), axis=-1),
    )
    sampled = [
        map_coordinates(component, np.moveaxis(index, -1, 0), order=1, mode="nearest")
        for component in displacement_vox
    ]
    return np.stack(sampled, axis=-1) @ network.affine[:3, :3].T


@pytest.mark.parametrize("key", GRIDS)
def test_known_deformation_is_undone(bundle_path, key):
    """The network's answer is known, so the moving image that it explains is known as well."""
    template, fixed = pair_on(key)
    registration = Registration(bundle_path)
    truth_mm = true_displacement_mm(fixed, registration.bundle.inputs, smooth_displacement_vox())
    # fixed(x) = moving(x + u(x)): the fixed image is the head seen through the displacement.
    seen = volume_of(head, fixed.grid, "fixed.nii.gz", through=lambda points: points + truth_mm)
    # The same grid must come out of the deformed image; it depends on the foreground's box.
    truth_mm = true_displacement_mm(seen, registration.bundle.inputs, smooth_displacement_vox())
    result = registration(template, seen, affine=False, refine=0)
    np.testing.assert_allclose(result.displacement.vectors_mm, truth_mm, atol=1e-3)
    expected = head(world_points(fixed.grid) + truth_mm)
    # Linear interpolation of the 1 mm moving image blurs its steep rim by a few units of 170.
    assert np.abs(result.warped.data - expected).mean() < 1.0
    assert result.metrics["ncc"]["after"] > result.metrics["ncc"]["before"]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("key", GRIDS)
def test_itk_applying_the_saved_displacement_reproduces_the_warped_image(
    bundle_path, tmp_path, key, affine
):
    moving, fixed = pair_on(key)
    labels = volume_of(head_labels, moving.grid, "labels")
    save_volume(tmp_path / "moving.nii.gz", moving)
    save_labels(tmp_path / "labels.nii.gz", labels)
    result = Registration(bundle_path)(moving, fixed, labels, affine=affine, refine=0)
    result.save(tmp_path / "out")

    field = sitk.ReadImage(tmp_path / "out/displacement.nii.gz", sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    for name, saved, interpolator in (
        ("moving", "warped", sitk.sitkLinear),
        ("labels", "warped_labels", sitk.sitkNearestNeighbor),
    ):
        ours = sitk.ReadImage(tmp_path / f"out/{saved}.nii.gz")
        source = sitk.ReadImage(tmp_path / f"{name}.nii.gz")
        outside = float(sitk.GetArrayViewFromImage(source).min())
        theirs = sitk.Resample(source, ours, transform, interpolator, outside)
        difference = np.abs(
            sitk.GetArrayFromImage(theirs).astype(float) - sitk.GetArrayFromImage(ours)
        )
        # The header's float32 affine moves samples by 1e-6 mm: nothing to an intensity of 170,
        # and enough to tip a label whose sample lies exactly between two voxels.
        assert (difference > 1e-2).mean() < 1e-3


@pytest.mark.parametrize("key", GRIDS)
def test_affine_file_alone_is_the_displacement_of_a_network_that_does_nothing(
    zero_bundle_path, tmp_path, key
):
    moving, fixed = pair_on(key)
    moving = Volume(moving.data, moved(moving.grid, (4.0, -3.0, 2.0)), moving.name)
    result = Registration(zero_bundle_path)(moving, fixed, refine=0)
    result.save(tmp_path / "out")
    transform = sitk.ReadTransform(str(tmp_path / "out/affine.tfm"))
    index = (3, 4, 5)
    point = world_points(fixed.grid)[index]
    mapped = np.array(transform.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
    np.testing.assert_allclose(mapped, point + result.displacement.vectors_mm[index], atol=1e-3)
    np.testing.assert_allclose(mapped - point, (4, -3, 2), atol=1.5)
    assert result.metrics["ncc"]["after"] > 0.97


def moved(grid: Grid, by_mm) -> Grid:
    affine = grid.affine.copy()
    affine[:3, 3] += by_mm
    return Grid(grid.shape, affine)


@pytest.fixture(scope="module")
def labelled(bundle_path) -> RegistrationResult:
    moving, fixed = pair_on("LAS-RAS")
    return Registration(bundle_path, threads=1)(
        moving,
        fixed,
        volume_of(head_labels, moving.grid, "moving labels"),
        volume_of(head_labels, fixed.grid, "fixed labels"),
        affine=False,
        refine=0,
    )


def test_files_are_written_on_the_threads_of_the_registration(labelled, tmp_path):
    def threads(folder: Path) -> None:
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == 1
        (folder / "seen").touch()

    labelled.save(tmp_path / "out", extras={"threads": threads})
    assert labelled.metrics["seconds"].pop("threads") >= 0


def test_everything_is_written_and_lies_on_the_fixed_grid(labelled, tmp_path):
    labelled.save(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("warped.nii.gz", "displacement.nii.gz", "affine.tfm", "warped_labels.nii.gz"),
        "metrics.json",
    }
    _, fixed = pair_on("LAS-RAS")
    for name in ("warped", "warped_labels", "displacement"):
        image = nib.load(tmp_path / f"out/{name}.nii.gz")
        assert image.shape[:3] == fixed.grid.shape
        np.testing.assert_allclose(image.affine, fixed.grid.affine, atol=1e-4)
    assert load_volume(tmp_path / "out/warped.nii.gz").data.dtype == np.float32


def test_metrics_are_complete(labelled, tmp_path):
    labelled.save(tmp_path / "out")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text(encoding="utf-8"))
    assert metrics["model"] == "known-displacement"
    assert set(metrics["ncc"]) == set(metrics["dice"]) == {"before", "affine", "after"}
    assert set(metrics["assd_mm"]) == set(metrics["hd95_mm"]) == {"before", "after"}
    # Both images are the same head, so the known displacement makes everything worse.
    assert metrics["dice"]["before"]["mean"] > 0.95 > metrics["dice"]["after"]["mean"] > 0.5
    assert metrics["assd_mm"]["before"]["mean"] < 0.1 < metrics["assd_mm"]["after"]["mean"] < 4
    assert set(metrics["dice"]["after"]["labels"]) == {"1", "2", "7"}
    assert metrics["hd95_mm"]["after"]["mean"] > metrics["assd_mm"]["after"]["mean"]
    assert metrics["nonpositive_jacobian_percent"] == 0.0
    assert 0 < metrics["sd_log_jacobian"] < 1
    stages = ["load", "affine", "checks", "preprocess", "network", "warp", "metrics", "save"]
    assert list(metrics["seconds"]) == stages
    assert metrics["network_grid"]["spacing_growth"] >= 1


def test_surfaces_are_measured_unless_they_are_left_out(labelled, bundle_path):
    moving, fixed = pair_on("LAS-RAS")
    labels = (volume_of(head_labels, volume.grid, "labels") for volume in (moving, fixed))
    found = Registration(bundle_path, 1)(
        moving, fixed, *labels, affine=False, surfaces=False, refine=0
    )
    of_surfaces = {"assd_mm", "hd95_mm", "nsd", "nsd_tolerance_mm"}
    assert labelled.metrics.keys() - found.metrics.keys() == of_surfaces
    assert not any(name in found.metrics["definitions"] for name in of_surfaces)
    assert found.metrics["dice"] == labelled.metrics["dice"]


def test_an_engine_that_is_still_loading_is_waited_for(bundle_path):
    moving, fixed = pair_on("RAS-RAS")
    eager = Registration(bundle_path, 1)
    loading: Future = Future()
    register = Registration(bundle_path, 1, Later(lambda: loading))
    Timer(1.0, lambda: loading.set_result(eager.backend)).start()
    found = register(moving, fixed, affine=False, refine=0)
    expected = eager(moving, fixed, affine=False, refine=0).displacement.vectors_mm
    np.testing.assert_array_equal(found.displacement.vectors_mm, expected)
    assert "load network" in found.metrics["seconds"]
    assert "load network" not in register(moving, fixed, affine=False, refine=0).metrics["seconds"]


def options_for(bundle_path, precision: str) -> Options:
    return Options(model=bundle_path, threads=1, backend="onnxruntime", precision=precision)


def test_an_engine_that_cannot_be_loaded_says_so_when_it_is_needed(bundle_path, monkeypatch):
    def refuse(*_):
        raise BackendError("this network: expected another")

    monkeypatch.setattr("paramorph_rt.loaded.choose_backend", refuse)
    register = loaded(options_for(bundle_path, "fp32"), wait=False)
    for needed in (register.ready, lambda: register(*pair_on("RAS-RAS"), affine=False, refine=0)):
        with pytest.raises(BackendError, match=r"^this network: expected another"):
            needed()


def test_a_request_that_cannot_be_met_is_refused_before_anything_is_loaded(bundle_path):
    with pytest.raises(BackendError, match=r"^onnxruntime: expected precision fp32, got bf16"):
        loaded(options_for(bundle_path, "bf16"), wait=False)


def test_no_engine_is_loaded_for_a_pair_that_cannot_be_read(bundle_path, tmp_path):
    begun = []
    register = Registration(bundle_path, 1, Later(lambda: begun.append(1)))
    with pytest.raises(VolumeError, match="found none"):
        register(tmp_path / "none.nii.gz", pair_on("RAS-RAS")[1], refine=0)
    assert not begun


def test_folds_are_counted(tmp_path):
    displacement_vox = smooth_displacement_vox()
    displacement_vox[0, 8:12] += 8 * np.sin(np.arange(4))[:, None, None]
    bundle = write_bundle(tmp_path / "bundle", displacement_vox)
    result = Registration(bundle)(*pair_on("RAS-RAS"), affine=False, refine=0)
    assert 1 < result.metrics["nonpositive_jacobian_percent"] < 30


def test_results_on_another_grid_are_samples_of_the_same_field(bundle_path):
    moving, fixed = pair_on("LPS-oblique")
    labels = volume_of(head_labels, moving.grid, "moving labels")
    finer = centred_grid("SPR", (33, 35, 37), (0.7, 0.8, 0.9))
    register = Registration(bundle_path)
    there = register(moving, fixed, labels, affine=False, refine=0)
    here = register(moving, fixed, labels, affine=False, output_grid=finer, refine=0)
    assert here.warped.grid is here.warped_labels.grid is here.displacement.grid
    assert here.warped.grid.matches(finer, 0.0)
    index = nib.affines.apply_affine(np.linalg.inv(fixed.grid.affine), world_points(finer))
    index = np.moveaxis(index, -1, 0)
    for c in range(3):
        expected = map_coordinates(there.displacement.vectors_mm[..., c], index, order=1)
        # Two linear interpolations against one, of a field with 15 mm long waves.
        np.testing.assert_allclose(here.displacement.vectors_mm[..., c], expected, atol=0.1)
    for result in (here, there):
        result.metrics.pop("seconds")
    for result, warned in ((here, True), (there, False)):
        said = " ".join(result.metrics.pop("warnings"))
        assert ("lies outside the output grid" in said) == warned
        flags = result.metrics["quality"].pop("flags")
        assert ("cut_off" in [flag["name"] for flag in flags]) == warned
    assert here.metrics == there.metrics


def test_an_output_grid_that_cuts_the_fixed_image_is_warned_of(zero_bundle_path, caplog):
    moving, fixed = pair_on("RAS-LPS")
    x = world_points(fixed.grid)[..., 0]
    shown = fixed.data > foreground_threshold(fixed.data)
    # Its voxels reach from -6.5 to 40.5 mm.
    half = Grid((47, 80, 80), nib.affines.from_matvec(np.eye(3), (-6, -40, -40)))
    share = 100 * np.mean(x[shown] < -6.5)
    assert share > 10
    register = Registration(zero_bundle_path)
    found = register(moving, fixed, affine=False, output_grid=half)
    told = f"{share:.1f} % of what {fixed.name} shows lies outside the output grid"
    assert [warning.partition(",")[0] for warning in found.metrics["warnings"]] == [told]
    assert told in caplog.text
    whole = Grid((80, 80, 80), nib.affines.from_matvec(np.eye(3), (-40, -40, -40)))
    assert register(moving, fixed, affine=False, output_grid=whole).metrics["warnings"] == []


def test_inverse_maps_the_moving_image_back(bundle_path):
    moving, fixed = pair_on("oblique-LAS")
    result = Registration(bundle_path)(moving, fixed, affine=False, inverse=True, refine=0)
    assert result.inverse.grid is moving.grid
    x = world_points(moving.grid) + result.inverse.vectors_mm
    index = nib.affines.apply_affine(np.linalg.inv(fixed.grid.affine), x)
    inside = ((index >= 0) & (index <= np.array(fixed.grid.shape) - 1)).all(axis=-1)
    index = np.moveaxis(index[inside], -1, 0)
    vectors = np.moveaxis(result.displacement.vectors_mm, -1, 0)
    u = np.stack([map_coordinates(component, index, order=1) for component in vectors], axis=-1)
    error = np.linalg.norm(x[inside] + u - world_points(moving.grid)[inside], axis=-1)
    assert error.max() < 0.021  # the tolerance, and rounding
    told = result.metrics["inverse_consistency_mm"]
    assert told["from_moving"]["max"] <= error.max() + 1e-3
    assert 0 < told["from_fixed"]["mean"] < 0.05


def test_initial_transform_alone_is_the_affine(zero_bundle_path):
    moving, fixed = pair_on("RAS-LPS")
    far = np.eye(4)
    far[:3, 3] = (500, -300, 200)
    moved_away = Volume(moving.data, Grid(moving.grid.shape, far @ moving.grid.affine))
    result = Registration(zero_bundle_path)(moved_away, fixed, affine=False, initial=far, refine=0)
    np.testing.assert_array_equal(result.affine, far)
    assert result.metrics["ncc"]["after"] > 0.97


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("bspline", 3)])
def test_images_along_take_the_interpolation(bundle_path, interpolation, order):
    moving, fixed = pair_on("RAS-RAS")
    other = volume_of(head, centred_grid("LAS", (60, 64, 50), (0.9, 1.0, 1.1)), "t2.nii.gz")
    result = Registration(bundle_path)(
        moving,
        fixed,
        affine=False,
        interpolation=interpolation,
        also=[other],
        refine=0,
    )
    x = world_points(fixed.grid) + result.displacement.vectors_mm
    index = np.moveaxis(nib.affines.apply_affine(np.linalg.inv(other.grid.affine), x), -1, 0)
    expected = map_coordinates(other.data, index, order=order, mode="mirror")
    inner = fixed.data > 20
    np.testing.assert_allclose(result.also["t2.nii.gz"].data[inner], expected[inner], atol=0.02)


def test_labels_are_optional(zero_bundle_path, tmp_path):
    result = Registration(zero_bundle_path)(*pair_on("RAS-RAS"), affine=False, refine=0)
    assert result.warped_labels is None
    assert "dice" not in result.metrics
    result.save(tmp_path / "out")
    assert not (tmp_path / "out/warped_labels.nii.gz").exists()


def test_fixed_labels_need_moving_labels(zero_bundle_path):
    moving, fixed = pair_on("RAS-RAS")
    labels = volume_of(head_labels, fixed.grid, "fixed labels")
    with pytest.raises(VolumeError, match="expected moving labels to compare it with"):
        Registration(zero_bundle_path)(moving, fixed, fixed_labels=labels, refine=0)


def test_label_maps_need_a_label_in_common(zero_bundle_path):
    moving, fixed = pair_on("RAS-RAS")
    labels = volume_of(head_labels, moving.grid, "moving labels")
    other = volume_of(head_labels, fixed.grid, "fixed labels")
    other = Volume(other.data * 100, other.grid, other.name)
    with pytest.raises(VolumeError, match="expected labels in common with fixed labels"):
        Registration(zero_bundle_path)(moving, fixed, labels, other, refine=0)


def test_progress_is_logged(zero_bundle_path, caplog):
    caplog.set_level(logging.INFO, "paramorph_rt")
    Registration(zero_bundle_path)(*pair_on("RAS-RAS"), affine=False, refine=0)
    assert "network …" in caplog.messages
    assert any(message.startswith("network: ") for message in caplog.messages)


def test_one_registration_does_many_pairs_equally(bundle_path):
    registration = Registration(bundle_path)
    first, second = (registration(*pair_on("LPS-oblique"), refine=0) for _ in range(2))
    np.testing.assert_array_equal(first.warped.data, second.warped.data)
    np.testing.assert_array_equal(first.displacement.vectors_mm, second.displacement.vectors_mm)


def test_results_carry_the_code_of_the_fixed_world(zero_bundle_path, tmp_path):
    moving, fixed = pair_on("RAS-RAS")
    in_mni = Volume(fixed.data, replace(fixed.grid, world_code=4), fixed.name)
    for grid in (None, moving.grid):
        result = Registration(zero_bundle_path)(
            moving,
            in_mni,
            affine=False,
            inverse=True,
            output_grid=grid,
            refine=0,
        )
        result.save(tmp_path / "out", force=True)
        for name, code in (("warped", 4), ("displacement", 4), ("inverse_displacement", 1)):
            header = nib.load(tmp_path / f"out/{name}.nii.gz").header
            assert (header["sform_code"], header["qform_code"]) == (code, code)
    assert load_volume(tmp_path / "out/warped.nii.gz").grid.world_code == 4


def test_closed_registration_registers_no_more(bundle_path):
    with Registration(bundle_path, 1, "onnxruntime") as register:
        engine = register.backend
    register.close()  # once more does nothing
    with pytest.raises(BackendError, match=r"registration: expected an open engine, got one that"):
        register(*pair_on("RAS-RAS"))
    with pytest.raises(BackendError, match=r"onnxruntime-cpu: expected an open engine"):
        engine.run(np.zeros(NETWORK_SHAPE, np.float32), np.zeros(NETWORK_SHAPE, np.float32))


def test_engine_of_the_callers_stays_open(bundle_path):
    engine = choose_backend(load_bundle(bundle_path), "onnxruntime", threads=1)
    with Registration(bundle_path, 1, engine):
        pass
    engine.run(np.zeros(NETWORK_SHAPE, np.float32), np.zeros(NETWORK_SHAPE, np.float32))

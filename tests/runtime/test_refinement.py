"""The refinement: one step against SciPy, both its forms, known deformations, holes, absence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

import paramorph_rt
from paramorph_rt import Registration
from paramorph_rt.bundle import NO_MODEL
from paramorph_rt.errors import BackendError
from paramorph_rt.geometry.field import DisplacementField, field_from_network
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, save_volume
from paramorph_rt.metrics.deformation import regularity
from paramorph_rt.refinement import compiled, graph, slabs
from paramorph_rt.refinement.coarse_to_fine import refine
from paramorph_rt.refinement.forces import LEAST_FORCE, gaussian_taps
from paramorph_rt.refinement.images import Features, LevelImages
from paramorph_rt.refinement.rescaling import rescaled
from paramorph_rt.refinement.settings import Level, levels_of
from paramorph_rt.steps.foreground import MaskedImage
from paramorph_rt.steps.predict import INTENSITY, Prediction, view_over
from paramorph_rt.steps.preparation import prepare_pair

from .phantoms import centred_grid, head, smooth_displacement_vox, volume_of

needs_compiled = pytest.mark.skipif(
    not slabs.is_available(), reason="needs the compiled passes: python setup.py build_ext -i"
)
FORMS = [
    pytest.param(compiled.iterate, id="compiled", marks=needs_compiled),
    pytest.param(graph.iterate, id="graph"),
]
SHAPE = (15, 18, 13)


def images_of(shape=SHAPE, spacing=(1.0, 1.0, 1.0), channels=0, counts=None, seed=3) -> LevelImages:
    rng = np.random.default_rng(seed)

    def smooth() -> np.ndarray:
        values = ndimage.gaussian_filter(rng.random(shape), 1.5)
        return ((values - values.min()) / np.ptp(values)).astype(np.float32)

    features = None
    if channels:
        features = Features(*(np.stack([smooth() for _ in range(channels)]) for _ in range(2)))
    return LevelImages(smooth(), smooth(), Grid(shape, np.diag([*spacing, 1.0])), features, counts)


def start_of(shape=SHAPE) -> np.ndarray:
    rng = np.random.default_rng(5)
    return (
        ndimage.gaussian_filter(rng.normal(size=(3, *shape)), (0, 3, 3, 3)).astype(np.float32) * 9
    )


def scipy_step(images: LevelImages, level: Level, field: np.ndarray) -> np.ndarray:
    """One iteration on voxels of the level's own spacing, in SciPy."""
    identity = np.indices(images.fixed.shape, dtype=float)

    def sampled(volume, at):
        return ndimage.map_coordinates(volume.astype(float), at, order=1, mode="nearest")

    def mean(volume):
        return ndimage.uniform_filter(volume, 5, mode="nearest")

    def gradient(volume):
        padded = np.pad(volume, 1, mode="edge")
        return [
            np.take(padded, range(2, padded.shape[a]), a)
            - np.take(padded, range(padded.shape[a] - 2), a)
            for a in range(3)
        ]

    def differences(volume):
        inner = (slice(1, -1),) * 3
        found = []
        for axis, slope in enumerate(gradient(volume)):
            cut = tuple(slice(None) if a == axis else inner[a] for a in range(3))
            found.append(slope[cut] / 2)
        return np.stack(found)

    fixed = images.fixed.astype(float)
    warped = sampled(images.moving, identity + field)
    mean_f, mean_w = mean(fixed), mean(warped)
    var_f = np.maximum(mean(fixed**2) - mean_f**2, 0)
    var_w = np.maximum(mean(warped**2) - mean_w**2, 0)
    covariance = mean(fixed * warped) - mean_f * mean_w
    by_intensity = (
        covariance
        / (var_f * var_w + 1e-6)
        * ((fixed - mean_f) - (covariance + 1e-4) / (var_w + 1e-4) * (warped - mean_w))
    )
    force = by_intensity * differences(warped)
    if images.features is not None:
        for moving, wanted in zip(images.features.moving, images.features.fixed, strict=True):
            channel = sampled(moving, identity + field)
            force += level.features * (wanted - channel) * differences(channel)
    if images.counts is not None:
        force = force * images.counts

    def smoothed(vectors, sigma):
        return np.stack(
            [ndimage.gaussian_filter(v, sigma, mode="nearest", truncate=3.0) for v in vectors]
        )

    step = smoothed(force, level.force_sigma)
    step *= level.step / max(np.sqrt((step**2).sum(0)).max(), LEAST_FORCE)
    carried = np.stack([sampled(component, identity + step) for component in field])
    return smoothed(carried + step, level.field_sigma)


@pytest.mark.parametrize("iterate", FORMS)
@pytest.mark.parametrize("channels", [0, 4])
def test_one_step_is_that_of_scipy(iterate, channels):
    counts = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    images = images_of(channels=channels, counts=counts)
    level = Level(1.0, 1, step=2.4, force_sigma=1.7, field_sigma=0.7, features=0.05)
    start = start_of()
    wanted = scipy_step(images, level, start)
    found = iterate(images, level, start, threads=2)
    assert np.abs(wanted - start).max() > 0.3  # it is a step
    np.testing.assert_allclose(found, wanted, atol=5e-4)


@needs_compiled
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 1.2, 2.5)])
@pytest.mark.parametrize("channels", [0, 5])
def test_both_forms_are_the_same_over_many_steps(spacing, channels):
    images = images_of((21, 16, 18), spacing, channels)
    level = Level(0.8, 8, features=0.1)
    start = start_of((21, 16, 18))
    ours, theirs = (form(images, level, start) for form in (compiled.iterate, graph.iterate))
    assert np.abs(ours - start).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


@needs_compiled
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads):
    images, level = images_of(channels=2), Level(1.0, 4)
    one = compiled.iterate(images, level, start_of(), threads=2)
    assert (compiled.iterate(images, level, start_of(), threads=threads) == one).all()


@needs_compiled
def test_a_field_that_leads_anywhere_is_sampled_inside():
    start = start_of()
    start[0, 2:5], start[1, 3], start[2, 4] = np.nan, np.inf, -1e30
    compiled.iterate(images_of(), Level(1.0, 1), start)  # and does not crash


@pytest.mark.parametrize("iterate", FORMS)
def test_no_iterations_leave_the_field(iterate):
    start = start_of()
    np.testing.assert_array_equal(iterate(images_of(), Level(1.0, 0), start), start)


def test_without_refinement_the_field_is_the_networks(bundle_path):
    moving, fixed = a_pair()
    found = Registration(bundle_path)(moving, fixed, affine=False, refine=0)
    register = Registration(bundle_path)
    pair = prepare_pair(MaskedImage(moving), MaskedImage(fixed), np.eye(4), register.bundle.inputs)
    wanted = field_from_network(smooth_displacement_vox(), pair.grid).resampled_to(fixed.grid)
    np.testing.assert_allclose(found.displacement.vectors_mm, wanted.vectors_mm, atol=1e-5)
    assert found.metrics["refinement"] is None


@pytest.mark.parametrize("orientation", ["RAS", "LPI", "oblique"])
def test_known_deformation_is_found_without_a_model(orientation):
    moving, fixed = a_pair(orientation)
    found = Registration(NO_MODEL)(moving, fixed, affine=False)
    points = fixed.grid.positions()
    inside = head(points) > 20
    error = np.linalg.norm(found.displacement.vectors_mm - (bent(points) - points), axis=-1)[inside]
    before = np.linalg.norm(bent(points) - points, axis=-1)[inside]
    assert before.mean() > 1.5
    assert error.mean() < 0.35 * before.mean()
    assert regularity(found.displacement)["nondiffeomorphic_volume_percent"] == 0
    assert found.metrics["model"] == "none"
    assert found.metrics["backend"] is None
    assert [level["spacing_mm"] for level in found.metrics["refinement"]["levels"]] == [
        6,
        3,
        1.5,
        1,
        0.7,
    ]


@pytest.mark.parametrize("request_", [{"backend": "onnxruntime"}, {"precision": "fp16"}])
def test_without_a_model_nothing_is_asked_of_engines(request_):
    (what,) = request_
    with pytest.raises(BackendError, match=f"model none: expected no {what}, .*; leave --{what} "):
        Registration(NO_MODEL, **request_)


def test_an_image_is_not_moved_against_itself():
    _, fixed = a_pair()
    found = Registration(NO_MODEL)(fixed, fixed, affine=False)
    assert np.abs(found.displacement.vectors_mm).max() < 1e-3
    assert found.metrics["ncc"]["after"] > 0.99999


def test_it_goes_on_from_a_networks_field(zero_bundle_path):
    moving, fixed = a_pair()
    start = Registration(zero_bundle_path)(moving, fixed, affine=False, refine=0)
    found = Registration(zero_bundle_path)(moving, fixed, affine=False)
    assert found.metrics["ncc"]["after"] > start.metrics["ncc"]["after"] + 0.02
    assert found.metrics["backend"] is not None


def test_what_lies_in_the_hole_of_a_mask_drives_nothing():
    _, fixed = a_pair()
    points = fixed.grid.positions()
    lesion = np.linalg.norm(points - (6, 2, 0), axis=-1) < 5
    moving = Volume(np.where(lesion, 150, fixed.data).astype(np.float32), fixed.grid, "lesion")
    mask = Volume((~lesion).astype(np.uint8), fixed.grid, "mask")
    free = Registration(NO_MODEL)(moving, fixed, affine=False)
    held = Registration(NO_MODEL)(moving, fixed, affine=False, moving_mask=mask)
    moved = [np.abs(found.displacement.vectors_mm[lesion]).max() for found in (free, held)]
    assert moved[0] > 1
    assert moved[1] < 0.1


def test_features_ask_for_smoother_fields():
    """By a factor on `feature_sigma`, and on nothing else."""
    grid = centred_grid("RAS", (24, 26, 22), (2.0, 2.0, 2.0))
    fixed, moving = volume_of(head, grid), volume_of(head, grid, through=bent)
    still = DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))
    channels = [volume.data[None] / 50 for volume in (moving, fixed)]

    def refined(smoothing, sigma):
        features = Features(*channels, smoothing)
        start = Prediction("made up", None, grid, still, INTENSITY, features)
        levels = [Level(4.0, 3, feature_sigma=sigma), Level(2.0, 2, feature_sigma=sigma)]
        images = SimpleNamespace(
            masked_moving=MaskedImage(moving),
            masked_fixed=MaskedImage(fixed),
            fixed=fixed,
            fixed_mask=None,
        )
        return refine(images, np.eye(4), start, levels, threads=1).field.vectors_mm

    smoother = refined(2.0, 0.8)
    np.testing.assert_array_equal(smoother, refined(1.0, 1.6))
    assert np.abs(smoother - refined(1.0, 0.8)).max() > 0.1


def test_levels_finer_than_the_fixed_image_are_left_out():
    grid = centred_grid("RAS", (22, 26, 10), (2.0, 2.0, 5.0))
    fixed = volume_of(head, grid)
    moving = volume_of(head, grid, through=bent)
    found = Registration(NO_MODEL)(moving, fixed, affine=False)
    assert found.displacement.grid.shape == grid.shape
    assert found.metrics["ncc"]["after"] > found.metrics["ncc"]["before"]


@pytest.mark.parametrize("shape", [(20, 25, 16), (30, 24, 20), (44, 50, 40), (13, 50, 7)])
def test_levels_are_resampled_as_itk_does_it(shape):
    grid = Grid((30, 40, 20), np.diag([1.0, 1.2, 0.8, 1.0]))
    data = ndimage.gaussian_filter(np.random.default_rng(2).normal(size=grid.shape), 1.0).astype(
        np.float32
    )
    target = grid.with_shape(shape)
    expected = resample_to_grid(Volume(data, grid, ""), target)
    # ITK lets other values go on beyond the border, and its kernel ends at 1 % of its weight.
    inside = tuple(slice(n // 5, -(n // 5)) for n in shape)
    difference = np.abs(rescaled(data, grid, target) - expected)[inside]
    assert difference.max() < 0.03 * data.std()


@pytest.mark.parametrize("shape", [(5, 5, 5), (20, 20, 20), (12, 9, 31)])
def test_resampled_levels_keep_constants_and_their_place(shape):
    grid = Grid((12, 9, 20), np.eye(4))
    channels = np.stack([np.full(grid.shape, 3.0), *np.indices(grid.shape)]).astype(np.float32)
    target = grid.with_shape(shape)
    constant, *index = rescaled(channels, grid, target)
    np.testing.assert_allclose(constant, 3.0, rtol=1e-5)
    middle = tuple(slice(n // 4, n - n // 4) for n in shape)  # no border is near
    truth = np.moveaxis(target.world(np.stack(np.indices(shape), axis=-1)), -1, 0)
    for found, expected in zip(index, truth, strict=True):
        np.testing.assert_allclose(found[middle], expected[middle], atol=0.05)


@pytest.mark.parametrize("shape", [(5, 5, 5), (20, 20, 20), (12, 18, 31)])
def test_levels_are_resampled_alike_with_and_without_compiled_passes(shape, monkeypatch):
    grid = Grid((12, 9, 20), np.eye(4))
    channels = np.random.default_rng(1).random((2, *grid.shape), np.float32)
    target = grid.with_shape(shape)
    found = rescaled(channels, grid, target, threads=2)
    monkeypatch.setattr(slabs, "is_available", lambda: False)
    np.testing.assert_allclose(found, rescaled(channels, grid, target), atol=1e-6)


def test_view_holds_the_foreground_at_one_millimetre():
    fixed = volume_of(head, centred_grid("SPR", (60, 40, 34), (0.9, 1.3, 2.0)))
    view = view_over(fixed)
    np.testing.assert_allclose(view.spacing, 1, rtol=0.05)
    index = np.argwhere(fixed.data > 20)
    in_view = (fixed.grid.world(index) - view.affine[:3, 3]) @ np.linalg.inv(view.affine[:3, :3]).T
    assert (in_view > 5).all()
    assert (in_view < np.array(view.shape) - 6).all()


def test_taps_are_a_gaussian():
    taps = gaussian_taps(1.7)
    impulse = np.zeros(21)
    impulse[10] = 1
    wanted = ndimage.gaussian_filter1d(impulse, 1.7, truncate=3.0)
    np.testing.assert_allclose(taps, wanted[wanted > 0], rtol=1e-5)


def test_iterations_are_in_proportion():
    assert levels_of(0) == ()
    assert [level.iterations for level in levels_of(15)] == [30, 15, 15, 6, 6]
    with pytest.raises(ValueError, match="no negative number of iterations"):
        Level(1.0, -1)


def test_without_compiled_passes_onnxruntime_refines(tmp_path):
    """The package as it is where there was no compiler."""
    package = Path(paramorph_rt.__file__).parent
    skipped = shutil.ignore_patterns("*.so", "*.pyd", "bundles", "__pycache__")
    shutil.copytree(package, tmp_path / "paramorph_rt", ignore=skipped)
    moving, fixed = a_pair()
    for name, volume in (("m", moving), ("f", fixed)):
        save_volume(tmp_path / f"{name}.nii.gz", volume)
    script = (
        "from paramorph_rt import Registration\n"
        "found = Registration('none')('m.nii.gz', 'f.nii.gz', affine=False, refine=4)\n"
        "print(found.metrics['refinement']['engine'], found.metrics['ncc']['after'])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    engine, ncc = done.stdout.split()
    assert engine == "onnxruntime"
    here = Registration(NO_MODEL)(moving, fixed, affine=False, refine=4)
    assert float(ncc) == pytest.approx(here.metrics["ncc"]["after"], abs=1e-3)


def bent(points: np.ndarray) -> np.ndarray:
    """Where fixed points lie in the moving image; some millimetres away, smooth, without folds."""
    x, y, z = np.moveaxis(points, -1, 0)
    shift = [2.2 * np.sin(y / 9), 1.5 + 1.6 * np.cos(x / 8), 1.8 * np.sin(x / 9 + z / 10)]
    return points + np.stack(shift, axis=-1)


def a_pair(orientation: str = "RAS") -> tuple[Volume, Volume]:
    """(moving, fixed): the fixed head is the moving one seen through `bent`."""
    grid = centred_grid(orientation, (46, 54, 42))
    moving = volume_of(head, centred_grid("RAS", (58, 64, 52)), "moving")
    return moving, volume_of(head, grid, "fixed", through=bent)

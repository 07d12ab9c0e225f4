"""The refinement of the C library against Python's, its features, its refusals and the example."""

from __future__ import annotations

import ctypes
import importlib
import math
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from paramorph_rt.backends import choose_features
from paramorph_rt.bundle import default_bundle_path, load_bundle
from paramorph_rt.geometry.field import DisplacementField, field_from_network
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, load_volume
from paramorph_rt.refinement.coarse_to_fine import refine
from paramorph_rt.refinement.images import Features
from paramorph_rt.refinement.rescaling import rescaled
from paramorph_rt.refinement.settings import DEFAULT_LEVELS, Level, levels_of
from paramorph_rt.steps.affine import align_affine
from paramorph_rt.steps.foreground import MaskedImage
from paramorph_rt.steps.predict import INTENSITY, Prediction
from paramorph_rt.steps.preparation import images_on_grid, prepare_pair

from .cpp_build import (
    built_example,
    built_library,
    call,
    checked,
    installed,
    onnxruntime_of_the_wheel,
)

ARGUMENT, NO_ENGINE, BACKEND = 1, 3, 5  # status codes of paramorph.h
SHAPE = (44, 52, 39)
GRID = Grid(SHAPE, np.diag([1.0, 1.1, 1.3, 1.0]))
VIEW = GRID.with_shape((29, 38, 34))  # 1.5 mm
SMALL = default_bundle_path().with_name("hippocampus-small")


@pytest.fixture(scope="module")
def client():
    """`cpp/client.py`, on the built library."""
    library = built_library()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIBPARAMORPH", str(library))
        patch.syspath_prepend(Path(__file__).parent / "cpp")
        yield importlib.import_module("client")


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    prefix = installed(tmp_path_factory.mktemp("prefix"))
    return built_example(prefix, tmp_path_factory.mktemp("example"))


def smooth(shape=SHAPE, seed=0, sigma=3) -> np.ndarray:
    values = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigma)
    return ((values - values.min()) / np.ptp(values)).astype(np.float32)


def alike() -> tuple[np.ndarray, np.ndarray]:
    """Two images that a few voxels bring upon each other, nearly."""
    fixed = smooth(seed=2)
    moved = ndimage.shift(fixed, (1.5, -1, 2), order=1, mode="nearest")
    return (0.9 * moved + 0.1 * smooth(seed=1)).astype(np.float32), fixed


def features_of(shape=VIEW.shape, channels=4) -> np.ndarray:
    seeds = range(10, 10 + 2 * channels)
    return np.stack([smooth(shape, seed) for seed in seeds]).reshape(2, channels, *shape)


def start_of(shape=VIEW.shape) -> np.ndarray:
    noise = np.random.default_rng(5).normal(size=(3, *shape))
    return ndimage.gaussian_filter(noise, (0, 3, 3, 3)).astype(np.float32) * 9


def levels_for(client, levels) -> list:
    return [client.Level(*astuple(level)) for level in levels]


def in_voxels(field: DisplacementField) -> np.ndarray:
    matrix = np.linalg.inv(field.grid.affine[:3, :3])
    return np.einsum("ab,ijkb->aijk", matrix, field.vectors_mm)


def refined_by_python(moving, fixed, start, levels=DEFAULT_LEVELS, mask=None, affine=None):
    """The field on the finest level's grid, and both images there."""
    images = SimpleNamespace(
        masked_moving=MaskedImage(moving),
        masked_fixed=MaskedImage(fixed),
        fixed=fixed,
        fixed_mask=mask,
    )
    affine = np.eye(4) if affine is None else affine
    field = refine(images, affine, start, levels, threads=2).field
    both = images.masked_moving, images.masked_fixed
    on_grid = images_on_grid(*both, affine, field.grid, start.intensity)
    pair = [np.ascontiguousarray(image) for image in (on_grid.moving, on_grid.fixed)]
    return field, *pair


@pytest.mark.parametrize("given", [(), ("features",), ("start",), ("mask", "features", "start")])
def test_field_is_that_of_python(client, given):
    moving, fixed = (Volume(image, GRID) for image in alike())
    mask = Volume((smooth(seed=3) > 0.3).astype(np.uint8), GRID) if "mask" in given else None
    features = features_of() if "features" in given else None
    start = start_of() if "start" in given else np.zeros((3, *VIEW.shape), np.float32)
    prediction = Prediction(
        "made up",
        None,
        VIEW,
        field_from_network(start, VIEW),
        INTENSITY,
        None if features is None else Features(*features, smoothing=1.5),
    )
    field, *pair = refined_by_python(moving, fixed, prediction, mask=mask)
    assert field.grid.shape == SHAPE
    found, warped = client.refine(
        *pair,
        tuple(GRID.spacing),
        # Python widens a mask by the radius of the correlation.
        counts=None if mask is None else ndimage.maximum_filter(mask.data, 5).astype(np.float32),
        start=start if "start" in given else None,
        features=features,
        smoothing=1.5,
    )
    wanted = in_voxels(field)
    assert np.abs(wanted).max() > 2
    # Matrices are summed in another order, and 31 steps pass that on.
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    at = np.indices(SHAPE) + found
    truth = ndimage.map_coordinates(pair[0], at, order=1, mode="nearest")
    np.testing.assert_allclose(warped, truth, atol=1e-5)


def test_thick_slices_are_refined_as_far_as_in_python(client):
    """Without levels that would show nothing new, and no finer than the slices across them."""
    thick = GRID.with_shape((22, 52, 13))
    moving, fixed = (Volume(rescaled(image, GRID, thick), thick) for image in alike())
    view = thick.with_shape(VIEW.shape)
    still = field_from_network(np.zeros((3, *view.shape), np.float32), view)
    prediction = Prediction("made up", None, view, still, INTENSITY)
    levels = [Level(20, 4), Level(5, 4), Level(2, 3), Level(1, 2), Level(0.7, 5)]
    field, *pair = refined_by_python(moving, fixed, prediction, levels)
    assert field.grid.shape == thick.shape
    found, _ = client.refine(*pair, tuple(thick.spacing), levels=levels_for(client, levels))
    assert np.abs(found).max() > 1
    np.testing.assert_allclose(found, in_voxels(field), atol=1e-3)


def test_a_start_on_a_finer_grid_is_that_of_python(client):
    moving, fixed = (Volume(image, GRID) for image in alike())
    start, levels = start_of(), [Level(4.0, 1)]
    field = field_from_network(start, VIEW)
    prediction = Prediction("made up", None, VIEW, field, INTENSITY)
    field, *pair = refined_by_python(moving, fixed, prediction, levels)
    assert field.grid.shape == (11, 14, 13)
    on_level = levels_for(client, levels)
    found, _ = client.refine(*pair, tuple(field.grid.spacing), start=start, levels=on_level)
    np.testing.assert_allclose(found, in_voxels(field), atol=1e-5)


def test_images_finer_than_the_finest_level_are_brought_onto_it(client):
    """And its field onto their grid, both by the matrices that Python has."""
    fine = Grid((41, 37, 30), np.diag([0.7, 0.6, 0.9, 1.0]))
    coarse = fine.with_shape((19, 15, 18))  # 1.5 mm
    moving, fixed = smooth(fine.shape, 1), smooth(fine.shape, 2)
    levels = levels_for(client, [Level(1.5, 6)])
    found, _ = client.refine(moving, fixed, tuple(fine.spacing), levels=levels)
    pair = [rescaled(image, fine, coarse) for image in (moving, fixed)]
    on_level, _ = client.refine(*pair, tuple(coarse.spacing), levels=levels)
    growth = np.divide(fine.shape, coarse.shape)[:, None, None, None]
    assert np.abs(found).max() > 1
    np.testing.assert_allclose(found, rescaled(on_level, coarse, fine) * growth, atol=1e-3)


def test_no_step_leaves_the_start_on_the_images_grid(client):
    pair = smooth(seed=1), smooth(seed=2)
    start = start_of()
    levels = client.usual_levels(0)
    found, _ = client.refine(*pair, tuple(GRID.spacing), start=start, levels=levels)
    wanted = in_voxels(field_from_network(start, VIEW).resampled_to(GRID))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    still, warped = client.refine(*pair, tuple(GRID.spacing), levels=levels)
    assert not still.any()
    np.testing.assert_allclose(warped, pair[0], atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3, 100])
def test_threads_change_no_bit(client, threads):
    def refined(number):
        return client.refine(
            smooth(seed=1),
            smooth(seed=2),
            tuple(GRID.spacing),
            features=features_of(),
            levels=client.usual_levels(2),
            threads=number,
        )

    for one, other in zip(refined(2), refined(threads), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("iterations", [0, 1, 7, 8, 30])
def test_usual_levels_are_those_of_python(client, iterations):
    found = [
        tuple(getattr(level, name) for name, _ in level._fields_)
        for level in client.usual_levels(iterations)
    ]
    wanted = levels_of(iterations) or [
        Level(*(*astuple(level)[:1], 0, *astuple(level)[2:])) for level in DEFAULT_LEVELS
    ]
    assert found == [astuple(level) for level in wanted]


def test_bad_arguments_are_refused_in_one_sentence(client):
    pair, spacing = (smooth(seed=1), smooth(seed=2)), tuple(GRID.spacing)
    hole = pair[0].copy()
    hole[3, 4, 5] = np.nan

    def with_level(**changes):
        fields = dict(zip((f for f, _ in client.Level._fields_), astuple(Level(2, 1)), strict=True))
        return client.refusal(
            client.refine, *pair, spacing, levels=[client.Level(**fields | changes)]
        )

    def refused(moving=pair[0], spacing=spacing, **fields):
        return client.refusal(client.refine, moving, pair[1], spacing, **fields)

    size = ctypes.sizeof(client.Refinement)
    level = "levels[0]: expected a positive spacing and step, and nothing negative"
    cases = [
        (refused(struct_size=0), f"refinement.struct_size: expected {size}, got 0; set it"),
        (refused(moving=None), "moving, fixed, displacement: expected three arrays, got NULL"),
        (
            refused(shape=(4, 0, 6)),
            "shape: expected three positive sizes of at most 2^31 voxels, got",
        ),
        (refused(shape=(2048, 2048, 512)), "got (2048, 2048, 512); give D, H, W"),
        (refused(spacing=(1, 0, 1)), "spacing_mm: expected three positive numbers"),
        (refused(spacing=(1, math.nan, 1)), "spacing_mm: expected three positive numbers"),
        (refused(moving=hole), "moving: expected finite values, got NaN or infinity"),
        (refused(counts=hole), "counts: expected finite values"),
        (refused(start=np.stack([hole] * 3)), "start: expected finite values"),
        (refused(start=start_of(), start_shape=(-1, 2, 3)), "start_shape: expected three positive"),
        (refused(features=features_of(), channels=0), "channels: expected those of the features"),
        (refused(features=np.stack([[hole]] * 2)), "features: expected finite values"),
        (
            refused(features=features_of(), smoothing=-1),
            "smoothing: expected that of the features'",
        ),
        (refused(threads=-1), "threads: expected at most 1024, got -1; 0 is one per core"),
        (refused(threads=2000), "threads: expected at most 1024, got 2000;"),
        (refused(level_count=2), "levels: expected an array and its level_count, or NULL and 0,"),
        (refused(levels=[], level_count=-1), "or NULL and 0, got -1 levels in an array;"),
        (refused(levels=[]), "or NULL and 0, got 0 levels in an array;"),
        (with_level(spacing_mm=0), level),
        (with_level(iterations=-1), level),
        (with_level(step=math.inf), level),
        (with_level(field_sigma=-0.1), level),
        (with_level(features=math.nan), level),
        (with_level(force_sigma=1e9), "levels: expected a Gaussian of at most 1000 voxels"),
        (client.refusal(client.usual_levels, -1), "iterations: expected at least 0, got -1; the"),
        (client.refusal(client.usual_levels, 7, 4), "level_count: expected 5 levels, got 4"),
    ]
    for (status, sentence), words in cases:
        assert (status, words in sentence) == (ARGUMENT, True), (sentence, words)
        assert sentence.endswith(".")
        assert "\n" not in sentence


def test_images_far_beyond_their_range_are_no_silent_result(client):
    pair = smooth(seed=1) * np.float32(1e30), smooth(seed=2) * np.float32(1e30)
    status, sentence = client.refusal(client.refine, *pair, tuple(GRID.spacing))
    assert status == BACKEND
    assert sentence.startswith("refinement: expected finite displacements, got values that are not")


@pytest.fixture(scope="module")
def on_cpu(client):
    """Opens a bundle on the CPU; the test closes it."""
    library = str(onnxruntime_of_the_wheel())
    return lambda folder, **options: client.Engine(
        str(folder), backend="onnxruntime", library=library, threads=2, **options
    )


def test_features_are_those_of_python(on_cpu):
    bundle = load_bundle(SMALL)
    with on_cpu(SMALL, network="features") as engine:
        info = engine.info
        assert (info.channels, info.has_warped, info.file) == (3, 0, b"features.onnx")
        assert info.smoothing == bundle.smoothing == 1.25
        pair = smooth(engine.shape, 1), smooth(engine.shape, 2)
        found = engine.features(*pair)
    wanted = choose_features(bundle, "onnxruntime", "fp32", 2).run(*pair)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert wanted.std() > 0.01


def test_an_engine_gives_what_it_was_opened_for(client, on_cpu, bundle_path):
    with on_cpu(bundle_path) as registration, on_cpu(SMALL, network="features") as features:
        pair = smooth(features.shape, 1), smooth(features.shape, 2)
        registration.info.channels = 3
        refused = [
            client.refusal(registration.features, *pair),
            client.refusal(features.register, *pair),
        ]
    refused += [
        client.refusal(on_cpu, SMALL),
        client.refusal(on_cpu, bundle_path, network="features"),
        client.refusal(on_cpu, SMALL, network="segmentation"),
        client.refusal(client.Engine, str(SMALL), network="features"),
    ]
    expected = [
        (ARGUMENT, "engine: expected one of a feature network, got one of registration.onnx; open"),
        (ARGUMENT, "engine: expected one of a registration network, got one of features.onnx;"),
        (NO_ENGINE, "hippocampus-small: expected a network of precision fp32 at (48, 64, 48) for"),
        (NO_ENGINE, ": expected a feature network of precision fp32 at"),
        (ARGUMENT, 'options.network: expected "registration" or "features", got "segmentation"'),
        (ARGUMENT, 'options.network: expected "registration" on a GPU, got "features"; run it on'),
    ]
    for (status, sentence), (right, words) in zip(refused, expected, strict=True):
        assert (status, words in sentence) == (right, True), sentence


def write_raw(folder: Path, **arrays: np.ndarray) -> list[Path]:
    for name, array in arrays.items():
        np.ascontiguousarray(array, np.float32).tofile(folder / name)
    return [folder / name for name in arrays]


def refined_by_example(example, bundle, grid, fine_pair, network_pair, folder) -> np.ndarray:
    fine = write_raw(folder, fine_moving=fine_pair[0], fine_fixed=fine_pair[1])
    coarse = write_raw(folder, moving=network_pair[0], fixed=network_pair[1])
    option = ["--refine", *grid.shape, *(repr(float(mm)) for mm in grid.spacing), *fine]
    results = [folder / "displacement", folder / "warped"]
    library = onnxruntime_of_the_wheel()
    checked(example, *option, bundle, *coarse, *results, "onnxruntime", library)
    displacement, warped = (np.fromfile(path, np.float32) for path in results)
    assert warped.size == math.prod(grid.shape)
    return displacement.reshape(3, *grid.shape)


def test_example_refines_by_features(client, on_cpu, example, tmp_path):
    with on_cpu(SMALL, network="features") as engine:
        view = Grid(engine.shape, np.diag([*engine.info.spacing_mm, 1.0]))
        coarse = smooth(engine.shape, 1), smooth(engine.shape, 2)
        features, smoothing = engine.features(*coarse), engine.info.smoothing
    grid = view.with_shape((40, 50, 45))
    fine = [rescaled(image, view, grid) for image in coarse]
    found = refined_by_example(example, SMALL, grid, fine, coarse, tmp_path)
    spacing = tuple(grid.spacing)
    wanted, _ = client.refine(*fine, spacing, features=features, smoothing=smoothing)
    np.testing.assert_array_equal(found, wanted)
    assert np.abs(found).max() > 1


@pytest.mark.parametrize("bad", ["0", "-3", "many"])
def test_example_refuses_a_size_that_is_none(example, bad):
    done = call(example, "--refine", 4, bad, 6, 1, 1, 1, "m", "f", "B", "m", "f", "d", "w")
    assert done.returncode == 2
    assert f'expected three sizes and three spacings, got "{bad}" and "1"' in done.stderr


@pytest.mark.slow
def test_example_finds_what_python_finds_between_two_brains(example, brains, tmp_path):
    """The default registration, from the aligned pair on."""
    moving, fixed = (load_volume(brains / f"{name}_t1.nii.gz") for name in ("1003", "1004"))
    affine = align_affine(moving, fixed).affine
    bundle = load_bundle(default_bundle_path())
    pair = prepare_pair(MaskedImage(moving), MaskedImage(fixed), affine, bundle.inputs)
    engine = choose_features(bundle, "onnxruntime", "fp32", 2)
    still = DisplacementField(pair.grid, np.zeros((*pair.grid.shape, 3), np.float32))
    features = Features(*engine.run(pair.moving, pair.fixed))
    start = Prediction(bundle.name, engine, pair.grid, still, bundle.inputs.intensity, features)
    field, *fine = refined_by_python(moving, fixed, start, affine=affine)
    coarse = pair.moving, pair.fixed
    found = refined_by_example(example, bundle.folder, field.grid, fine, coarse, tmp_path)
    wanted = in_voxels(field)
    assert np.abs(wanted).max() > 5
    np.testing.assert_allclose(found, wanted, atol=1e-3)

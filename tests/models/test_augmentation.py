from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from paramorph.augmentation import Augmentation, Change
from paramorph.options import OptionError

SHAPE = (40, 44, 52)


def only(**options: float | tuple[int, ...]) -> Augmentation:
    """With these changes and no others."""
    off = {f.name: 0.0 for f in fields(Augmentation)}
    return Augmentation(**{**off, "flip_axes": (0,), "elastic_knots": 6, **options})


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=rng(seed))


def positions() -> torch.Tensor:
    """(3, d, h, w): each voxel's own index."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in SHAPE], indexing="ij"))


def read_at(change: Change) -> torch.Tensor:
    """Where each voxel of the result is read, (3, d, h, w): what becomes of ramps."""
    highest = torch.tensor(SHAPE).reshape(3, 1, 1, 1) - 1.0
    return change.image((positions() / highest)[:, None])[:, 0] * highest


def test_equal_seeds_give_equal_pairs():
    volume = rand(1, 1, *SHAPE)
    pairs = [Augmentation()(volume, volume, rng(seed)) for seed in (1, 1, 2)]
    for first, again, other in zip(*pairs, strict=True):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert not torch.equal(*pairs[0])  # moving and fixed differ a little


def test_no_augmentation_is_the_identity():
    moving, fixed = rand(1, 1, *SHAPE), rand(1, 1, *SHAPE, seed=1)
    changed = only()(moving, fixed, rng())
    torch.testing.assert_close(changed, (moving, fixed), atol=1e-5, rtol=0)


def test_the_flip_mirrors_the_first_axis():
    moving, fixed = rand(1, 1, *SHAPE), rand(1, 1, *SHAPE, seed=1)
    flipped = only(flip_probability=1.0)(moving, fixed, rng())
    torch.testing.assert_close(flipped, (moving.flip(2), fixed.flip(2)), atol=1e-5, rtol=0)


def test_other_axes_can_be_mirrored_each_by_itself():
    moving, fixed = torch.rand(2, 1, 1, 8, 9, 10)
    flipped = only(flip_probability=1.0, flip_axes=(0, 1))(moving, fixed, rng())
    torch.testing.assert_close(flipped[0], moving.flip(2, 3), atol=1e-5, rtol=0)
    flip = only(flip_probability=0.5, flip_axes=(0, 1))
    seen = [flip(moving, fixed, rng(seed))[0] for seed in range(60)]
    for axes in ([], [2], [3], [2, 3]):
        assert any(torch.allclose(image, moving.flip(axes), atol=1e-5) for image in seen)


def test_each_axis_can_be_stretched_by_itself():
    volume = volume_with_ball()
    sizes = []
    for seed in range(20):
        stretched, _ = only(own_stretch=0.4)(volume, volume, rng(seed))
        inside = (stretched[0, 0] > 0.5).nonzero().float()
        sizes.append(inside.std(0))
    ratios = torch.stack(sizes) / (volume[0, 0] > 0.5).nonzero().float().std(0)
    assert (ratios.amin(0) < 0.85).all()
    assert (ratios.amax(0) > 1.2).all()
    assert (ratios[:, 0] - ratios[:, 2]).abs().max() > 0.3  # not alike


def volume_with_ball() -> torch.Tensor:
    """A ball in the middle, of which stretching keeps the middle."""
    axes = [torch.arange(n) - (n - 1) / 2 for n in SHAPE]
    far = sum(a.square() for a in torch.meshgrid(*axes, indexing="ij"))
    return (far < 100).float()[None, None]


def test_an_axis_that_a_volume_lacks_is_refused():
    with pytest.raises(OptionError, match="flip_axes: expected some of 0, 1, 2"):
        Augmentation(flip_axes=(3,))


def test_the_flip_happens_as_often_as_asked():
    volume = rand(1, 1, 3, 4, 5)
    flip = only(flip_probability=0.25)
    pairs = [flip(volume, volume, rng(seed)) for seed in range(100)]
    flipped = [not torch.allclose(pair[0], volume, atol=1e-5) for pair in pairs]
    assert 10 < sum(flipped) < 40


COMMON = {
    "common_rotation_deg": 12.0,
    "common_scale": 0.1,
    "flip_probability": 0.5,
    "common_elastic_vox": 2.0,
}
OWN = {
    "own_rotation_deg": 2.0,
    "own_scale": 0.02,
    "own_shift_vox": 1.0,
    "own_elastic_vox": 2.0,
    "gamma": 0.2,
    "bias": 0.2,
    "noise": 0.02,
}


def test_common_changes_keep_the_pair_aligned():
    volume = rand(1, 1, *SHAPE)
    moving, fixed = only(**COMMON)(volume, volume, rng())
    assert torch.equal(moving, fixed)
    assert (moving - volume).abs().mean() > 0.1


@pytest.mark.parametrize("name", OWN)
def test_own_changes_differ_between_the_two(name):
    volume = rand(1, 1, *SHAPE)
    moving, fixed = only(**{name: OWN[name]})(volume, volume, rng())
    differences = [(a - b).abs().mean() for a, b in ((moving, volume), (fixed, volume))]
    assert min(differences) > 1e-3
    assert not torch.equal(moving, fixed)


@pytest.mark.parametrize("seed", range(3))
def test_affine_changes_equal_those_of_scipy(seed):
    augmentation = only(
        common_rotation_deg=12.0, common_scale=0.1, own_shift_vox=1.0, flip_probability=0.5
    )
    change, _ = augmentation.draw(SHAPE, rng(seed))
    # Solve for the affine from the voxels that are read well inside.
    to, source = (x.flatten(1).double().numpy() for x in (positions(), read_at(change)))
    highest = np.array(SHAPE)[:, None] - 1
    inside = ((source > 1) & (source < highest - 1)).all(axis=0)
    design = np.vstack([to, np.ones(to.shape[1])])
    solution = np.linalg.lstsq(design[:, inside].T, source[:, inside].T, rcond=None)[0].T
    matrix, offset = solution[:, :3], solution[:, 3]

    scale = abs(np.linalg.det(matrix)) ** (1 / 3)
    assert 0.9 <= scale <= 1.1
    np.testing.assert_allclose(matrix @ matrix.T, scale**2 * np.eye(3), atol=1e-4)
    turn = matrix / scale * [np.sign(np.linalg.det(matrix)), 1, 1]  # without the flip
    angle = math.degrees(math.acos((np.trace(turn) - 1) / 2))
    assert 1 < angle < 12 * math.sqrt(3)
    centre = (np.array(SHAPE) - 1) / 2
    shift = matrix @ centre + offset - centre
    assert 0.1 < np.abs(shift).max() <= 1

    volume = rand(1, 1, *SHAPE)
    expected = affine_transform(volume[0, 0].numpy(), matrix, offset, order=1, mode="nearest")
    # 1e-3: a place at the very border may be read on either side of it.
    np.testing.assert_allclose(change.image(volume)[0, 0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("name", ["common_elastic_vox", "own_elastic_vox"])
def test_elastic_displacements_are_smooth_and_within_their_bound(name):
    largest = 0.0
    for seed in range(5):
        for change in only(**{name: 2.0}).draw(SHAPE, rng(seed)):
            u = (read_at(change) - positions())[:, 2:-2, 2:-2, 2:-2]  # not clipped by the border
            assert all(u.diff(dim=axis).abs().max() < 0.2 for axis in (1, 2, 3))
            largest = max(largest, u.abs().max().item())
    assert 0.5 < largest <= 2


def test_more_knots_make_rougher_displacements():
    roughness = []
    for knots in (3, 6, 9):
        change, _ = only(common_elastic_vox=2.0, elastic_knots=knots).draw(SHAPE, rng())
        u = (read_at(change) - positions())[:, 2:-2, 2:-2, 2:-2]
        roughness.append(u.diff(dim=3).std() / u.std())
    assert 1.2 * roughness[0] < roughness[1] < 0.8 * roughness[2]


def test_gamma_is_one_exponent_for_the_volume():
    volume = rand(1, 1, *SHAPE).clamp(0.1, 0.9)
    exponents = []
    for seed in range(10):
        moving, _ = only(gamma=0.2)(volume, volume, rng(seed))
        exponent = moving.log() / volume.log()
        assert exponent.max() - exponent.min() < 1e-3
        exponents.append(exponent.mean().item())
    assert math.exp(-0.2) <= min(exponents) < 0.95
    assert 1.05 < max(exponents) <= math.exp(0.2)


def test_bias_is_a_smooth_factor_within_its_bounds():
    volume = torch.full((1, 1, 96, 96, 96), 0.5)  # large enough to come close to the bounds
    fields = [(x / 0.5).log() for x in only(bias=0.3)(volume, volume, rng())]
    assert 0.15 < max(field.abs().max() for field in fields) <= 0.3
    for field in fields:
        assert all(field.diff(dim=axis).abs().max() < 0.05 for axis in (2, 3, 4))


def test_noise_leaves_the_background_zero():
    volume = torch.full((1, 1, *SHAPE), 0.5)
    volume[:, :, :10] = 0
    deviations = []
    for seed in range(10):
        moving, _ = only(noise=0.05)(volume, volume, rng(seed))
        assert (moving[:, :, :9] == 0).all()  # rounding mixes a trace of slice 10 into slice 9
        noise = moving[:, :, 10:] - 0.5
        assert noise.mean().abs() < 5 * 0.05 / noise.numel() ** 0.5
        deviations.append(noise.std().item())
    assert max(deviations) <= 0.0505  # 0.05, but for the chance of finitely many samples
    assert max(deviations) > 2 * min(deviations)


def test_intensities_stay_in_the_unit_interval():
    volume = rand(1, 1, *SHAPE).round()
    for changed in only(gamma=1.0, bias=1.0, noise=0.5)(volume, volume, rng()):
        assert changed.min() == 0
        assert changed.max() == 1


def test_labels_move_as_their_images_do():
    distance = (positions() - torch.tensor([17.0, 24.0, 28.0]).reshape(3, 1, 1, 1)).norm(dim=0)
    ball = (distance < 12)[None, None]
    augmentation = only(**COMMON, own_rotation_deg=5.0, own_shift_vox=2.0, own_elastic_vox=1.0)
    for change in augmentation.draw(SHAPE, rng()):
        image = change.image(ball.float()) > 0.5
        labels = change.labels(ball)
        assert labels.dtype == torch.bool
        both = (image & labels).sum() * 2 / (image.sum() + labels.sum())
        assert both > 0.98  # nearest and linear interpolation round the surface differently
        before = (image & ball).sum() * 2 / (image.sum() + ball.sum())
        assert before < 0.95


def test_labels_keep_their_values_whatever_happens_to_intensities():
    values = torch.tensor([0, 17, 255, 2035], dtype=torch.int16)
    labels = values[torch.randint(0, 4, (1, 1, *SHAPE), generator=rng())]
    for change in Augmentation(gamma=1.0, bias=1.0, noise=0.5).draw(SHAPE, rng()):
        moved = change.labels(labels)
        assert moved.dtype == torch.int16
        assert moved.unique().tolist() == values.tolist()


def test_calling_is_drawing_and_applying():
    moving, fixed = rand(2, 1, *SHAPE), rand(2, 1, *SHAPE, seed=1)
    called = Augmentation()(moving, fixed, rng())
    for result, volume, change in zip(
        called, (moving, fixed), Augmentation().draw(SHAPE, rng()), strict=True
    ):
        assert torch.equal(result, change.image(volume))
        torch.testing.assert_close(result[1:], change.image(volume[1:]))  # each of a batch alike


def test_changes_are_drawn_for_the_device():
    volume = torch.empty(1, 1, *SHAPE, device="meta")  # holds no numbers, but is a device
    for augmentation in (Augmentation(own_elastic_vox=1.0), only()):
        for change in augmentation.draw(SHAPE, rng(), "meta"):
            assert {t.device.type for t in (change.grid, change.gain, change.noise)} == {"meta"}
        assert {t.device.type for t in augmentation(volume, volume, rng())} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_a_gpu_gives_the_same_pair():
    volume = rand(1, 1, *SHAPE)
    expected = Augmentation()(volume, volume, rng())
    found = Augmentation()(volume.cuda(), volume.cuda(), rng())
    for result, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(result.cpu(), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": -0.1}, "gamma: expected at least 0, got -0.1"),
        ({"flip_probability": 1.5}, "flip_probability: expected 0 to 1, got 1.5"),
        ({"elastic_knots": 1}, "elastic_knots: expected at least 2, got 1"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Augmentation(**options)

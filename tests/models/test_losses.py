from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter

from paramorph.losses import (
    SIMILARITIES,
    LossConfig,
    bending_energy,
    common_label_masks,
    folding_penalty,
    gradient_smoothness,
    label_dice_loss,
    local_ncc,
    loss_terms,
    mean_squared_error,
    mind,
    mind_descriptor,
    mutual_information,
    total,
)
from paramorph.options import OptionError
from paramorph.warp import warp

SHAPE = (12, 13, 14)


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def positions(*shape: int) -> torch.Tensor:
    """(3, d, h, w): each voxel's own index."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in shape], indexing="ij"))


def along(axis: int) -> torch.Tensor:
    """The unit displacement along one axis, (1, 3, 1, 1, 1)."""
    return torch.eye(3)[axis].reshape(1, 3, 1, 1, 1)


def phantom(shift: float = 0.0) -> torch.Tensor:
    """Three balls of different brightness on grey, in [0, 1], moved along the first axis."""
    at = positions(24, 22, 20) - shift * along(0)[0]
    image = torch.full(at.shape[1:], 0.3)
    for centre, radius, brightness in (
        ((8, 8, 9), 5, 0.5),
        ((15, 14, 10), 4, 0.2),
        ((9, 15, 12), 3, -0.2),
    ):
        distance = (at - torch.tensor(centre).reshape(3, 1, 1, 1)).norm(dim=0)
        image = image + brightness * torch.sigmoid(radius - distance)
    return image[None, None]


@pytest.mark.parametrize("window", [3, 5, 9])
def test_local_ncc_equals_its_definition(window):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, *SHAPE))
    mean = lambda x: uniform_filter(x, window, mode="constant")  # noqa: E731
    covariance = mean(a * b) - mean(a) * mean(b)
    va, vb = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    expected = 1 - np.mean(covariance**2 / (va * vb + 1e-8))
    tensors = [torch.from_numpy(x).float()[None, None] for x in (a, b)]
    assert local_ncc(*tensors, window).item() == pytest.approx(expected, abs=1e-4)


def test_local_ncc_has_the_gradient_of_a_plain_convolution():
    def plain(w, f):
        kernel = torch.ones(1, 1, 9, 9, 9) / 9**3
        means = [F.conv3d(x, kernel, padding=4) for x in (w, f, w * w, f * f, w * f)]
        covariance = means[4] - means[0] * means[1]
        variances = (means[2] - means[0] ** 2) * (means[3] - means[1] ** 2)
        return 1 - (covariance**2 / (variances + 1e-8)).mean()

    gradients = []
    for loss in (local_ncc, plain):
        w = rand(2, 1, *SHAPE).requires_grad_()
        loss(w, rand(2, 1, *SHAPE, seed=1)).backward()
        gradients.append(w.grad)
    largest = gradients[1].abs().max().item()
    torch.testing.assert_close(*gradients, atol=1e-4 * largest, rtol=0)


def test_local_ncc_ignores_contrast_and_brightness():
    a = rand(1, 1, 16, 16, 16)
    inside = local_ncc(a, 0.3 + 0.5 * a)
    assert inside < 0.2  # not 0: windows at the border reach into padding
    assert local_ncc(a, rand(1, 1, 16, 16, 16, seed=1)) > 0.7


@pytest.mark.parametrize("name", SIMILARITIES)
def test_flat_volumes_have_a_finite_loss_and_gradient(name):
    flat = torch.zeros(1, 1, *SHAPE, requires_grad=True)
    loss = SIMILARITIES[name](flat, torch.zeros(1, 1, *SHAPE))
    loss.backward()
    # Correlation and information find nothing in common, differences find none.
    assert loss.item() == {"ncc": 1, "nmi": 1, "mse": 0, "mind": 0}[name]
    assert torch.isfinite(flat.grad).all()


def test_mean_squared_error_by_hand():
    a, b = torch.zeros(1, 1, 2, 2, 2), torch.full((1, 1, 2, 2, 2), 0.5)
    assert mean_squared_error(a, b).item() == 0.25


def test_mind_descriptor_equals_its_definition():
    image = np.random.default_rng(0).random((8, 6, 7))
    image[:5] *= 0.01  # a part with less than the least noise
    radius, dilation = 1, 2
    at = lambda p: image[tuple(np.clip(p, 0, np.array(image.shape) - 1))]  # noqa: E731
    steps = [s * dilation * np.eye(3, dtype=int)[axis] for axis in range(3) for s in (-1, 1)]
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6) if (steps[i] + steps[j]).any()]
    assert len(pairs) == 12
    distances = np.zeros((12, *image.shape))
    for p in np.ndindex(image.shape):
        for q in product(*(range(c - radius, c + radius + 1) for c in p)):
            if any(c < 0 or c >= n for c, n in zip(q, image.shape, strict=True)):
                continue
            for k, (i, j) in enumerate(pairs):
                distances[k][p] += (at(q + steps[i]) - at(q + steps[j])) ** 2
    distances /= (2 * radius + 1) ** 3
    noise = distances.mean(axis=0)
    assert 0.1 < (noise < 1e-3 * noise.mean()).mean() < 0.9
    noise = np.maximum(noise, 1e-3 * noise.mean())
    expected = np.exp(-(distances - distances.min(axis=0)) / noise)
    found = mind_descriptor(torch.from_numpy(image).float()[None, None], radius, dilation)
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def test_mind_ignores_linear_changes_of_contrast_and_its_inversion():
    image = phantom()
    for other in (0.1 + 0.5 * image, 0.9 - 0.5 * image):
        assert mind(image, other) < 1e-6
    assert mind(image, phantom(2.0)) > 1e-2


def test_mutual_information_equals_that_of_a_histogram():
    bins = 32
    a = (rand(2, 1, *SHAPE) * 8).floor() * 3  # on bin centres
    b = (0.7 * a + 6 * rand(2, 1, *SHAPE, seed=1)).round()
    expected = []
    entropy = lambda p: -np.sum(p[p > 0] * np.log(p[p > 0]))  # noqa: E731
    for x, y in zip(a, b, strict=True):
        joint, *_ = np.histogram2d(
            x.flatten(), y.flatten(), bins=np.arange(bins + 1) - 0.5, density=True
        )
        separate = entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1))
        expected.append(2 - separate / entropy(joint))
    found = mutual_information(a / (bins - 1), b / (bins - 1), bins)
    assert found.item() == pytest.approx(np.mean(expected), abs=1e-5)
    assert 0.3 < found < 0.9


def test_mutual_information_is_bounded():
    a = (rand(1, 1, *SHAPE) * 31).round() / 31
    assert mutual_information(a, 1 - a).item() == pytest.approx(0, abs=1e-5)
    ramps = positions(*SHAPE)[:, None, None] / 31  # independent of each other by construction
    assert mutual_information(ramps[0], ramps[1]).item() == pytest.approx(1, abs=1e-5)


def test_mutual_information_has_the_gradient_of_finite_differences():
    w = rand(1, 1, 3, 4, 5).double().requires_grad_()
    f = rand(1, 1, 3, 4, 5, seed=1).double()
    (gradient,) = torch.autograd.grad(mutual_information(w, f, bins=6), w)
    for p in ((0, 0, 1, 2, 3), (0, 0, 2, 0, 4)):
        step = torch.zeros_like(w)
        step[p] = 1e-3
        difference = mutual_information(w + step, f, bins=6) - mutual_information(w - step, f, 6)
        assert gradient[p].item() == pytest.approx(difference.item() / 2e-3, rel=1e-2)


@pytest.mark.parametrize("name", ["mind", "nmi"])
@pytest.mark.parametrize("shift", [-2.0, 2.0])
def test_losses_for_other_contrasts_lead_to_the_alignment(name, shift):
    moving, fixed = phantom(shift), 1 - phantom()
    still = torch.zeros(1, 3, *moving.shape[2:])
    offset = torch.tensor(shift / 2, requires_grad=True)  # half of the way is done
    loss = SIMILARITIES[name](warp(moving, still + offset * along(0)), fixed)
    loss.backward()
    assert offset.grad * shift < 0  # a larger offset would be better
    assert SIMILARITIES[name](phantom(), fixed) < loss < SIMILARITIES[name](moving, fixed)


def test_gradient_smoothness_of_a_linear_field():
    u = torch.zeros(1, 3, 5, 6, 7)
    u[:, 0] = 0.5 * torch.arange(5.0)[:, None, None]  # slope 0.5 of one component along one axis
    assert gradient_smoothness(u).item() == pytest.approx(0.25 / 3 / 3)  # of 3 components, 3 axes
    assert gradient_smoothness(u + 4).item() == pytest.approx(0.25 / 9)


def test_bending_energy_of_an_affine_field_is_zero():
    matrix = torch.tensor([[0.5, -0.25, 1.0], [0.0, 2.0, 0.5], [1.0, 0.25, -0.5]])
    u = torch.einsum("ca,adhw->cdhw", matrix, positions(5, 6, 7))[None] + 3
    assert bending_energy(u).item() == 0


def test_bending_energy_of_a_quadratic_field():
    x, y, z = positions(5, 6, 7)
    u = torch.stack([x * x, 3 * y * z, 0 * x])[None]  # d²u/dx² = 2 and d²u/dydz = d²u/dzdy = 3
    assert bending_energy(u).item() == pytest.approx((2**2 + 2 * 3**2) / 3)  # of 3 components


@pytest.mark.parametrize(("scale", "expected"), [(1.0, 0), (0.5, 0), (0.4, 0.036), (-1.0, 1.1)])
def test_folding_penalty_of_a_uniform_scaling(scale, expected):
    u = (scale - 1) * positions(4, 5, 6)[None]  # determinant scale³
    assert folding_penalty(u).item() == pytest.approx(expected, abs=1e-6)


def test_folding_penalty_of_a_rotation_is_zero():
    turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # determinant 1
    at = positions(4, 5, 6)
    assert folding_penalty((torch.einsum("ca,adhw->cdhw", turn, at) - at)[None]).item() == 0
    mirror = torch.diag(torch.tensor([1.0, -1.0, 1.0]))  # determinant -1
    folded = (torch.einsum("ca,adhw->cdhw", mirror, at) - at)[None]
    assert folding_penalty(folded, margin=0.5).item() == pytest.approx(1.5)


@pytest.mark.parametrize(("plane", "seen"), [(0, 1), (2, 2), (4, 1)])
def test_folding_penalty_sees_the_fold_of_a_single_voxel(plane, seen):
    u = torch.zeros(1, 3, 5, 6, 7)
    # One voxel jumps 1.5 ahead along the second axis: the slope before it is 2.5, after it -0.5.
    u[0, 1, plane, 3, 3] = 1.5
    # Both kinds of differences are taken at 4·5·6 voxels, forward ones not in the last plane,
    # backward ones not in the first; each is negative at one voxel.
    assert folding_penalty(u, margin=0.0).item() == pytest.approx(seen * 0.5 / (4 * 5 * 6) / 2)
    central = 1 + (u[0, 1, plane, 2:, 3] - u[0, 1, plane, :-2, 3]) / 2
    assert (central > 0).all()  # what the usual determinants do not show


def test_label_dice_loss_by_hand():
    fixed = torch.zeros(1, 2, 2, 2, 2)
    fixed[0, 0, 0], fixed[0, 1, 1] = 1, 1
    assert label_dice_loss(fixed, fixed).item() == pytest.approx(0, abs=1e-5)
    assert label_dice_loss(fixed.flip(1), fixed).item() == pytest.approx(1, abs=1e-5)
    half = fixed.clone()
    half[0, 0, 0, 0] = 0  # 2 of the 4 voxels of label 0: Dice 2·2/(2+4)
    assert label_dice_loss(half, fixed).item() == pytest.approx(1 - (2 / 3 + 1) / 2, abs=1e-5)
    assert label_dice_loss(0.5 * fixed, fixed).item() == pytest.approx(1 / 3, abs=1e-5)
    assert label_dice_loss(fixed[:, :0], fixed[:, :0]).item() == 0


def test_label_dice_loss_leads_labels_onto_each_other():
    moving, fixed = ((phantom(shift) > 0.5).float() for shift in (2.0, 0.0))
    still = torch.zeros(1, 3, *fixed.shape[2:])
    offset = torch.tensor(1.0, requires_grad=True)
    loss = label_dice_loss(warp(moving, still + offset * along(0)), fixed)
    loss.backward()
    assert offset.grad < 0
    assert loss < label_dice_loss(moving, fixed)


def test_common_label_masks_are_those_of_labels_in_both():
    moving = torch.tensor([0, 1, 2, 2, 5, 300]).reshape(1, 1, 1, 2, 3)
    fixed = torch.tensor([0, 300, 2, 7, 7, 1]).reshape(1, 1, 1, 2, 3)
    rng = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(20):
        m, f = common_label_masks(moving, fixed, 2, rng)
        assert m.shape == f.shape == (1, 2, 1, 2, 3)
        drawn = [set(moving[0, 0][channel.bool()].tolist()) for channel in m[0]]
        assert drawn == [set(fixed[0, 0][channel.bool()].tolist()) for channel in f[0]]
        assert all(len(labels) == 1 for labels in drawn)
        seen |= set.union(*drawn)
    assert seen == {1, 2, 300}
    masks, _ = common_label_masks(moving, fixed, 8, rng)
    assert masks.sum(dim=(0, 2, 3, 4)).sort().values.tolist() == [1, 1, 2]
    none, _ = common_label_masks(moving, torch.zeros_like(moving), 8, rng)
    assert none.shape == (1, 0, 1, 2, 3)


def test_common_label_masks_are_decided_by_their_generator():
    labels = torch.arange(60).reshape(1, 1, 3, 4, 5)
    draws = [
        common_label_masks(labels, labels, 4, torch.Generator().manual_seed(seed))[0]
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_terms_are_those_with_a_weight():
    w, f, u = rand(1, 1, *SHAPE), rand(1, 1, *SHAPE, seed=1), rand(1, 3, *SHAPE, seed=2)
    assert set(loss_terms(LossConfig(), w, f, u)) == {"similarity", "smoothness"}
    config = LossConfig(similarity="mse", smoothness=0.0, bending=2.0, folding=10.0, labels=3.0)
    terms = loss_terms(config, w, f, u)
    assert terms == {
        "similarity": mean_squared_error(w, f),
        "bending": bending_energy(u),
        "folding": folding_penalty(u),
    }
    terms["labels"] = torch.tensor(0.25)
    expected = terms["similarity"] + 2 * terms["bending"] + 10 * terms["folding"] + 0.75
    torch.testing.assert_close(total(config, terms), expected)


def test_the_window_of_local_ncc_is_an_option():
    w, f = rand(1, 1, *SHAPE), rand(1, 1, *SHAPE, seed=1)
    terms = loss_terms(LossConfig(ncc_window=5), w, f, torch.zeros(1, 3, *SHAPE))
    assert terms["similarity"] == local_ncc(w, f, 5) != local_ncc(w, f)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ncc_window": 4}, "ncc_window: expected an odd number ≥ 3, got 4"),
        ({"folding": -1.0}, "folding: expected at least 0, got -1.0"),
        ({"label_count": 0}, "label_count: expected at least 1, got 0"),
    ],
)
def test_unusable_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        LossConfig(**options)

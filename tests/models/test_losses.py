from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter

from paramorph.losses import gradient_smoothness, local_ncc, mean_squared_error


def test_local_ncc_equals_its_definition():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 12, 13, 14))
    mean = lambda x: uniform_filter(x, 9, mode="constant")  # noqa: E731
    covariance = mean(a * b) - mean(a) * mean(b)
    va, vb = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2
    expected = 1 - np.mean(covariance**2 / (va * vb + 1e-8))
    tensors = [torch.from_numpy(x).float()[None, None] for x in (a, b)]
    assert local_ncc(*tensors).item() == pytest.approx(expected, abs=1e-4)


def test_local_ncc_ignores_contrast_and_brightness():
    a = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    inside = local_ncc(a, 0.3 + 0.5 * a)
    assert inside < 0.2  # not 0: windows at the border reach into padding
    unrelated = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
    assert local_ncc(a, unrelated) > 0.7


def test_local_ncc_of_flat_volumes_is_finite_and_worst():
    flat = torch.zeros(1, 1, 12, 12, 12, requires_grad=True)
    loss = local_ncc(flat, torch.zeros(1, 1, 12, 12, 12))
    loss.backward()
    assert loss.item() == 1
    assert torch.isfinite(flat.grad).all()


def test_gradient_smoothness_of_a_linear_field():
    u = torch.zeros(1, 3, 5, 6, 7)
    u[:, 0] = 0.5 * torch.arange(5.0)[:, None, None]  # slope 0.5 of one component along one axis
    assert gradient_smoothness(u).item() == pytest.approx(0.25 / 3 / 3)  # of 3 components, 3 axes
    assert gradient_smoothness(u + 4).item() == pytest.approx(0.25 / 9)


def test_mean_squared_error_by_hand():
    a, b = torch.zeros(1, 1, 2, 2, 2), torch.full((1, 1, 2, 2, 2), 0.5)
    assert mean_squared_error(a, b).item() == 0.25

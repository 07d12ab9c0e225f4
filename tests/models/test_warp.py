from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import expm
from scipy.ndimage import map_coordinates

from paramorph.warp import SAMPLING, compose, grid_sample_3d, integrate, warp

SHAPE = (5, 6, 7)


def random_pair(seed: int = 0, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(2, channels, *SHAPE, generator=generator)
    return volume, torch.randn(2, 3, *SHAPE, generator=generator) * 2


def test_zero_displacement_is_the_identity():
    volume, displacement = random_pair()
    # 1 - 1e-6: positions pass through normalised float32 coordinates
    torch.testing.assert_close(warp(volume, displacement * 0), volume, atol=1e-6, rtol=0)


def test_component_c_moves_along_axis_c():
    volume, displacement = random_pair()
    for axis in range(3):
        step = torch.zeros_like(displacement)
        step[:, axis] = 1
        expected = volume.roll(-1, 2 + axis)
        inside = [slice(None)] * 5
        inside[2 + axis] = slice(0, -1)
        torch.testing.assert_close(
            warp(volume, step)[tuple(inside)], expected[tuple(inside)], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 1), ("nearest", 0)])
def test_equals_scipy(interpolation, order):
    volume, displacement = random_pair(1)
    displacement[:] = (displacement * 16).round() / 16 + 1 / 32  # never half-way between voxels
    warped = warp(volume, displacement, interpolation=interpolation)
    positions = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    for b in range(2):
        for c in range(2):
            expected = map_coordinates(
                volume[b, c].numpy(),
                positions + displacement[b].numpy(),
                order=order,
                mode="nearest",
            )
            np.testing.assert_allclose(warped[b, c].numpy(), expected, atol=1e-5)


def test_reference_convention_normalises_one_way_and_samples_the_other():
    volume, displacement = random_pair(2)
    axes = [torch.arange(n, dtype=torch.float32) for n in SHAPE]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
    normalised = [2 * (positions[:, c] / (n - 1) - 0.5) for c, n in enumerate(SHAPE)]
    expected = F.grid_sample(volume, torch.stack(normalised[::-1], -1), align_corners=False)
    torch.testing.assert_close(warp(volume, displacement, "reference"), expected, atol=1e-5, rtol=0)
    assert (warp(volume, displacement * 0, "reference") - volume).abs().max() > 0.1


@pytest.mark.parametrize("sampling", list(SAMPLING))
def test_custom_op_is_complete(sampling):
    volume, displacement = random_pair(3, channels=1)
    displacement[:] = displacement.clamp(-1.4, 1.4)
    torch.library.opcheck(
        grid_sample_3d,
        (volume.requires_grad_(), displacement.requires_grad_()),
        dict(SAMPLING[sampling]),
    )


def test_gradients_are_those_of_pytorch():
    volume, displacement = random_pair(4)
    volume.requires_grad_()
    displacement.requires_grad_()
    weight = torch.rand_like(volume)
    (warp(volume, displacement) * weight).sum().backward()
    mine = volume.grad, displacement.grad
    volume.grad = displacement.grad = None

    axes = [torch.arange(n, dtype=torch.float32) for n in SHAPE]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")) + displacement
    grid = torch.stack([2 * positions[:, c] / (SHAPE[c] - 1) - 1 for c in (2, 1, 0)], -1)
    out = F.grid_sample(volume, grid, padding_mode="border", align_corners=True)
    (out * weight).sum().backward()
    torch.testing.assert_close(mine[0], volume.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine[1], displacement.grad, atol=1e-4, rtol=1e-4)


def test_half_precision_volumes_are_sampled_in_float32():
    volume, displacement = random_pair(5)
    warped = warp(volume.half(), displacement)
    assert warped.dtype == torch.float16
    torch.testing.assert_close(
        warped.float(), warp(volume.half().float(), displacement), atol=1e-3, rtol=0
    )


def smooth_field(size: int, largest: float, seed: int = 0) -> torch.Tensor:
    """Random, smooth, and 0 at the border, so that nothing leaves the grid."""
    noise = torch.randn(1, 3, 4, 4, 4, generator=torch.Generator().manual_seed(seed))
    field = F.interpolate(noise, (size,) * 3, mode="trilinear", align_corners=True)
    field = F.avg_pool3d(field, 7, stride=1, padding=3)
    window = torch.hann_window(size, periodic=False)
    field = field * window[:, None, None] * window[:, None] * window
    return largest * field / field.abs().max()


def test_composed_displacement_warps_like_one_after_the_other():
    first, second = smooth_field(24, 2.0, 0), smooth_field(24, 2.0, 1)
    x = torch.stack(torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij"))[None]
    # Coordinates are a volume whose linear interpolation is exact.
    expected = warp(x + first, second)
    torch.testing.assert_close(x + compose(first, second), expected, atol=1e-4, rtol=0)
    assert (compose(first, second) - compose(second, first)).abs().max() > 0.05


def test_linear_velocity_integrates_to_the_matrix_exponential():
    slope = np.array([[0.0, 0.3, 0.0], [-0.3, 0.1, 0.0], [0.05, 0.0, -0.2]])
    centred = torch.stack(torch.meshgrid(*[torch.arange(-12.0, 13)] * 3, indexing="ij"))
    velocity = torch.einsum("cd,dijk->cijk", torch.tensor(slope).float(), centred)[None]
    exact = torch.tensor(expm(slope) - np.eye(3)).float()
    exact = torch.einsum("cd,dijk->cijk", exact, centred)[None]
    inside = (..., *[slice(7, 18)] * 3)
    moved = integrate(velocity, 7)[inside] - exact[inside]
    assert moved.abs().max() < 0.01 < exact[inside].abs().max() / 100


def test_negative_velocity_gives_the_inverse():
    velocity = smooth_field(32, 4.0)
    there, back = integrate(velocity, 7), integrate(-velocity, 7)
    assert there.abs().max() > 2
    left = compose(there, back).abs()
    assert left.max() < 0.2  # linear interpolation of curved fields, seven times
    assert left.mean() < 0.01

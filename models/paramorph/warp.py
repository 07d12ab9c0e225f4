"""Warping by a displacement field, as the custom operator `paramorph::grid_sample_3d`.

The operator takes the displacement itself, in voxels, so that an engine can sample without ever
writing a grid of coordinates. Its ONNX form is in `paramorph_export.grid_sample`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from paramorph.config import Sampling

#: What the two sampling conventions mean for the operator. `exact`: a zero displacement is the
#: identity. `reference`: positions are normalised as if corners were aligned and sampled as if they
#: were not, outside is zero; weights trained by the reference code expect it.
SAMPLING = {
    "exact": {"padding": "border", "align_corners": True},
    "reference": {"padding": "zeros", "align_corners": False},
}

_TORCH_MODE = {"linear": "bilinear", "nearest": "nearest"}


@torch.library.custom_op("paramorph::grid_sample_3d", mutates_args=())
def grid_sample_3d(
    volume: torch.Tensor,
    displacement: torch.Tensor,
    interpolation: str = "linear",
    padding: str = "border",
    align_corners: bool = True,
) -> torch.Tensor:
    """Sample `volume` (b, c, d, h, w) at p + displacement(p).

    Args:
        volume: Any number of channels.
        displacement: (b, 3, d, h, w) in voxels, channel order = axis order.
        interpolation: linear or nearest.
        padding: What lies outside the volume: border (its nearest voxel) or zeros.
        align_corners: True samples exactly at p + displacement(p). False is the reference's old
            convention: along an axis of n voxels, position x is read at x·n/(n-1) - 0.5.

    Returns:
        Shape (b, c, d, h, w), type of `volume`; computed in float32.
    """
    return _sample(volume, displacement, interpolation, padding, align_corners)


@grid_sample_3d.register_fake
def _(volume, displacement, interpolation="linear", padding="border", align_corners=True):
    return volume.new_empty((*volume.shape[:2], *displacement.shape[2:]))


def _setup_context(ctx, inputs, output):
    volume, displacement, *ctx.options = inputs
    ctx.save_for_backward(volume, displacement)


def _backward(ctx, grad):
    needed = ctx.needs_input_grad[:2]
    with torch.enable_grad():
        inputs = [
            t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)
        ]
        warped = _sample(*inputs, *ctx.options)
        wanted = [t for t in inputs if t.requires_grad]
        grads = iter(torch.autograd.grad(warped, wanted, grad))
    return *[next(grads) if n else None for n in needed], None, None, None


grid_sample_3d.register_autograd(_backward, setup_context=_setup_context)


def warp(
    volume: Float[Tensor, "b c d h w"],
    displacement: Float[Tensor, "b 3 d h w"],
    sampling: Sampling = "exact",
    interpolation: str = "linear",
) -> Float[Tensor, "b c d h w"]:
    """`warped(p) = volume(p + displacement(p))` in one of the two sampling conventions."""
    return grid_sample_3d(volume, displacement, interpolation, **SAMPLING[sampling])


def compose(
    first: Float[Tensor, "b 3 d h w"], second: Float[Tensor, "b 3 d h w"]
) -> Float[Tensor, "b 3 d h w"]:
    """The displacement of warping by `first` and its result by `second`, in voxels.

    ``warp(warp(volume, first), second) = warp(volume, compose(first, second))``, but for the
    second interpolation.
    """
    return second + warp(first, second)


def integrate(velocity: Float[Tensor, "b 3 d h w"], squarings: int) -> Float[Tensor, "b 3 d h w"]:
    """The displacement at time 1 of points that move with a stationary velocity, in voxels.

    Scaling and squaring: a step of 1 / 2^squarings, composed with itself `squarings` times. The
    negative velocity gives the inverse.

    Source:
        Arsigny et al., A log-Euclidean framework for statistics on diffeomorphisms (2006).
    """
    displacement = velocity / 2**squarings
    for _ in range(squarings):
        displacement = compose(displacement, displacement)
    return displacement


def smooth(displacement: Float[Tensor, "b 3 d h w"], sigma: float) -> Float[Tensor, "b 3 d h w"]:
    """The displacement convolved with a Gaussian of `sigma` voxels; beyond the border lie zeros."""
    d, h, w = displacement.shape[2:]
    along_d, along_h, along_w = (_gaussian(n, sigma, displacement) for n in (d, h, w))
    smoothed = (along_d @ displacement.flatten(3)).unflatten(3, (h, w))
    return along_h @ smoothed @ along_w


def _gaussian(n: int, sigma: float, like: Tensor) -> Float[Tensor, "n n"]:
    """The convolution along an axis of `n` voxels as a symmetric matrix."""
    offsets = torch.arange(-n, n + 1, dtype=torch.float32, device=like.device)
    weights = torch.exp(offsets.square() * (-0.5 / sigma**2))
    positions = torch.arange(n, device=like.device)
    return (weights / weights.sum())[positions[:, None] - positions + n].to(like.dtype)


def _sample(
    volume: Tensor, displacement: Tensor, interpolation: str, padding: str, align_corners: bool
) -> Tensor:
    size = displacement.shape[2:]
    coordinates = []
    for axis, n in enumerate(size):
        positions = torch.arange(n, device=displacement.device, dtype=torch.float32)
        shape = [n if axis == other else 1 for other in range(3)]
        at = displacement[:, axis].float() + positions.reshape(shape)
        coordinates.append(at * (2.0 / (volume.shape[2 + axis] - 1)) - 1.0)
    grid = torch.stack(coordinates[::-1], dim=-1)  # grid_sample wants W first
    mode = _TORCH_MODE[interpolation]
    out = F.grid_sample(volume.float(), grid, mode, padding, align_corners=align_corners)
    return out.to(volume.dtype)

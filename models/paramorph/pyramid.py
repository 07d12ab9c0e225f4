"""The pyramid network: two volumes in, a smooth displacement of half resolution out.

Both volumes go through one U-Net. From its coarsest scale to its finest, moving's features are
warped by the displacement so far and correlated with fixed's; two convolutions make a stationary
velocity of that, which is integrated and composed with the displacement.

Source:
    Sun et al., PWC-Net (2018); Mok and Chung, Large deformation diffeomorphic image registration
    with Laplacian pyramid networks (2020).
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from paramorph.blocks import ConvNorm
from paramorph.config import PyramidConfig, check_shape
from paramorph.warp import compose, integrate, warp

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Volumes = Float[Tensor, "b 1 d h w"]
    Displacement = Float[Tensor, "b 3 d h w"]

#: Of LeakyReLU below zero.
SLOPE = 0.1


class Estimate(NamedTuple):
    """What the network says of a pair.

    Attributes:
        displacements: One of each scale, the coarsest first, in voxels of its scale. The last is
            the result, at half resolution.
        codes: Of both volumes, moving's first: the expected codes of labels at half resolution,
            which are only trained on.
    """

    displacements: list[Displacement]
    codes: Float[Tensor, "2b c d/2 h/2 w/2"]


class PyramidNetwork(nn.Module):
    """A displacement from fixed to moving, as of `ParaMorph`, found coarse to fine."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        self.config = config
        self.features = SharedUNet(config.widths)
        scales = list(zip(reversed(config.widths), reversed(config.flow_widths), strict=True))
        scales += scales[-1:] * (config.repeats - 1)
        contexts = [0, *(context for _, context in scales)]
        self.flows = nn.ModuleList(
            Flow(channels, context, width)
            for (channels, width), context in zip(scales, contexts, strict=False)
        )
        self.codes = nn.Conv3d(config.widths[0], config.codes, 1)

    def forward(self, moving: Volumes, fixed: Volumes) -> Displacement:
        """The displacement in voxels; arguments and errors as of `ParaMorph.forward`."""
        return upsampled(self._displacements(self._features(moving, fixed))[-1])

    def estimate(self, moving: Volumes, fixed: Volumes) -> Estimate:
        """All that training looks at."""
        features = self._features(moving, fixed)
        return Estimate(self._displacements(features), self.codes(features[-1]))

    def rescale(self, factors: Float[Tensor, " 3"]) -> None:
        """Multiply what is found along each axis: for another spacing."""
        with torch.no_grad():
            for flow in self.flows:
                flow.head.weight *= factors[:, None, None, None, None]
                flow.head.bias *= factors

    def recompute_activations(self) -> None:
        """Keep only what enters each block during training, and compute its inside twice."""
        for block in self.modules():
            if isinstance(block, ConvNorm):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def _features(self, moving: Volumes, fixed: Volumes) -> list[Tensor]:
        check_shape(tuple(moving.shape[2:]))
        return self.features(torch.cat([moving, fixed]))

    def _displacements(self, features: list[Tensor]) -> list[Displacement]:
        displacements: list[Displacement] = []
        scales = [*features, *features[-1:] * (self.config.repeats - 1)]
        context = None
        for both, flow in zip(scales, self.flows, strict=True):
            moving, fixed = both.chunk(2)
            if context is None:
                context, velocity = flow(moving, fixed)
                so_far = None
            else:
                so_far = displacements[-1]
                if so_far.shape[2:] != fixed.shape[2:]:
                    so_far, context = upsampled(so_far), F.interpolate(context, scale_factor=2)
                context, velocity = flow(warp(moving, so_far), fixed, context)
            further = integrate(velocity.float(), self.config.squarings)
            displacements.append(further if so_far is None else compose(so_far, further))
        return displacements


class SharedUNet(nn.Module):
    """Features of volumes at each scale from 1/2 on, each with what the coarser ones know."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        first = widths[0]
        conv = partial(ConvNorm, slope=SLOPE)
        self.stem = nn.Sequential(conv(1, first, stride=2), conv(first, first))
        self.downs = nn.ModuleList(
            nn.Sequential(conv(a, b, stride=2), conv(b, b)) for a, b in pairwise(widths)
        )
        self.ups = nn.ModuleList(conv(a + b, a) for a, b in pairwise(widths))

    def forward(self, volumes: Volumes) -> list[Tensor]:
        """The coarsest first."""
        skips = [self.stem(volumes)]
        for down in self.downs:
            skips.append(down(skips[-1]))
        features = [skips.pop()]
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            features.append(up(torch.cat([F.interpolate(features[-1], scale_factor=2), skip], 1)))
        return features


class Flow(nn.Module):
    """A velocity from the features of two volumes, and what the next scale may know of them."""

    def __init__(self, channels: int, context: int, width: int) -> None:
        super().__init__()
        conv = partial(ConvNorm, slope=SLOPE)
        self.convs = nn.Sequential(conv(2 * channels + 27 + context, width), conv(width, width))
        self.head = nn.Conv3d(width, 3, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-4)  # training starts at the identity
        nn.init.zeros_(self.head.bias)

    def forward(self, moving: Tensor, fixed: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """(context, velocity in voxels) of features that are compared at each voxel."""
        joined = [fixed, moving, correlation(fixed, moving), *context]
        x = self.convs(torch.cat(joined, dim=1))
        return x, self.head(x)


def correlation(
    fixed: Float[Tensor, "b c d h w"], moving: Float[Tensor, "b c d h w"]
) -> Float[Tensor, "b 27 d h w"]:
    """Mean products of each voxel's features with moving's of that voxel and its 26 neighbours.

    Beyond the border lie zeros. The last axis of the neighbours runs fastest.
    """
    # Shifted by padding, a pad each: of slices of one padded volume TensorRT for RTX 1.7 builds no
    # engine in half (ssa_validation).
    steps = (1, 0, -1)
    shifts = ((k, -k, j, -j, i, -i) for i in steps for j in steps for k in steps)
    products = [(fixed * F.pad(moving, shift)).mean(1, keepdim=True) for shift in shifts]
    return torch.cat(products, dim=1)


def upsampled(displacement: Displacement) -> Float[Tensor, "b 3 2*d 2*h 2*w"]:
    """The displacement at twice the resolution, in its voxels."""
    finer = F.interpolate(displacement, scale_factor=2, mode="trilinear", align_corners=False)
    return 2 * finer

"""ParaMorph as a whole: two volumes in, a dense displacement field out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from paramorph.blocks import ConvBlock, NeXtBlock, NeXtDown
from paramorph.config import SIZE_MULTIPLE, ConfigError, NetworkConfig, check_shape
from paramorph.cross_attention import CrossAttention
from paramorph.decoder import Decoder, LongSkips
from paramorph.encoder import Encoder, Features
from paramorph.swin import SwinBlock
from paramorph.warp import compose, integrate, smooth, warp

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Volumes = Float[Tensor, "b 1 d h w"]
    Displacement = Float[Tensor, "b 3 d h w"]


class ParaMorph(nn.Module):
    """Parallel Transformer and ConvNet encoder, cross attention per scale, gap-filling decoder.

    `displacement[:, :, p]` is in voxels of the input grid, channel order = axis order (D, H, W):
    ``warped(p) = moving(p + displacement(p))``.

    Source:
        ParaMorph (hai-medicallab); this is an independent implementation from a description.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.cross_attentions = nn.ModuleList(
            CrossAttention(config.embed_dim * 2**scale, config) for scale in range(4)
        )
        self.long_skips = LongSkips(config)
        self.decoder = Decoder(config)

    def forward(self, moving: Volumes, fixed: Volumes) -> Displacement:
        """The displacement from fixed to moving, in voxels.

        Args:
            moving: Intensities in [0, 1]; every axis a multiple of 32.
            fixed: Like `moving`, on the same grid.

        Raises:
            ConfigError: A size that the network cannot run at.
        """
        if self.config.passes > 1 and set(moving.shape[2:]) == {SIZE_MULTIPLE}:
            raise ConfigError(  # the coarsest scale has one voxel, and nothing to normalise over
                f"network input: expected an axis longer than {SIZE_MULTIPLE} for several passes, "
                f"got {tuple(moving.shape[2:])}; pad or resample the volumes."
            )
        features = self._encode(torch.cat([moving, fixed]))
        displacement = self._one_way(features, moving, fixed)
        for _ in range(self.config.passes - 1):
            warped = warp(moving, displacement)
            features = _with_moving(self._encode(warped), features)  # fixed's stay as they are
            further = self._one_way(features, warped, fixed)
            displacement = compose(displacement, further)
        return displacement

    def both_ways(self, moving: Volumes, fixed: Volumes) -> tuple[Displacement, Displacement]:
        """(fixed to moving, moving to fixed) in one pass: what two calls give, for less.

        Encoder and cross attention serve both directions; only the decoder runs twice.
        """
        attended = [
            cross(features, _swapped(features)).volume()
            for features, cross in zip(
                self._encode(torch.cat([moving, fixed])), self.cross_attentions, strict=True
            )
        ]
        skips = [(a, torch.cat(a.chunk(2)[::-1])) for a in attended[:-1]]
        pair = torch.cat([moving, fixed], dim=1)
        half, full = self.long_skips(torch.cat([pair, pair.flip(1)]))
        displacement = self._decode(attended[-1], [*reversed(skips), (half,), (full,)])
        to_moving, to_fixed = displacement.chunk(2)
        return to_moving, to_fixed

    def rescale(self, factors: Float[Tensor, " 3"]) -> None:
        """Multiply what is found along each axis: for another spacing."""
        head = self.decoder.head
        with torch.no_grad():
            head.weight *= factors[:, None, None, None, None]
            head.bias *= factors

    def recompute_activations(self) -> None:
        """Keep only what enters each block during training, and compute its inside twice."""
        for block in self.modules():
            if isinstance(block, (NeXtBlock, NeXtDown, SwinBlock, ConvBlock)):
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def _one_way(self, features: list[Features], moving: Volumes, fixed: Volumes) -> Displacement:
        """One pass, from the features of both volumes: moving's half of the batch, then fixed's."""
        *finer, coarsest = features
        skips = []
        for both, cross in zip(finer, self.cross_attentions, strict=False):
            skips.append(cross(both, _swapped(both)).volume().chunk(2))
        moving_half, fixed_half = (Features(t, coarsest.size) for t in coarsest.tokens.chunk(2))
        attended = self.cross_attentions[-1](moving_half, fixed_half)  # fixed's is never used
        half, full = self.long_skips(torch.cat([moving, fixed], dim=1))
        return self._decode(attended.volume(), [*reversed(skips), (half,), (full,)])

    def _decode(self, coarsest: Tensor, skips: list[tuple[Tensor, ...]]) -> Displacement:
        output = self.decoder(coarsest, skips)
        if self.config.smoothing:
            output = smooth(output.float(), self.config.smoothing)
        steps = self.config.integration_steps
        return integrate(output.float(), steps) if steps else output

    def _encode(self, volumes: Volumes) -> list[Features]:
        """Features of a batch of volumes at each of the four scales, finest first."""
        check_shape(tuple(volumes.shape[2:]))
        return self.encoder(volumes)


def _with_moving(moving: list[Features], both: list[Features]) -> list[Features]:
    """Features of both volumes with other ones in moving's half of the batch."""
    return [
        Features(torch.cat([m.tokens, b.tokens.chunk(2)[1]]), b.size)
        for m, b in zip(moving, both, strict=True)
    ]


def _swapped(features: Features) -> Features:
    """Fixed's half of the batch first, then moving's."""
    moving, fixed = features.tokens.chunk(2)
    return Features(torch.cat([fixed, moving]), features.size)

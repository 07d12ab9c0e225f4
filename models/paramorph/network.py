"""ParaMorph as a whole: two volumes in, a dense displacement field out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from paramorph.config import NetworkConfig, check_shape
from paramorph.cross_attention import CrossAttention
from paramorph.decoder import Decoder, LongSkips
from paramorph.encoder import Encoder, Features

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
        *finer, coarsest = self._encode(moving, fixed)
        skips = []
        for features, cross in zip(finer, self.cross_attentions, strict=False):
            skips.append(cross(features, _swapped(features)).volume().chunk(2))
        moving_half, fixed_half = (Features(t, coarsest.size) for t in coarsest.tokens.chunk(2))
        attended = self.cross_attentions[-1](moving_half, fixed_half)  # fixed's is never used
        half, full = self.long_skips(torch.cat([moving, fixed], dim=1))
        return self.decoder(attended.volume(), [*reversed(skips), (half,), (full,)])

    def both_ways(self, moving: Volumes, fixed: Volumes) -> tuple[Displacement, Displacement]:
        """(fixed to moving, moving to fixed): what two calls give, for less.

        Encoder and cross attention serve both directions; only the decoder runs twice.
        """
        attended = [
            cross(features, _swapped(features)).volume()
            for features, cross in zip(
                self._encode(moving, fixed), self.cross_attentions, strict=True
            )
        ]
        skips = [(a, torch.cat(a.chunk(2)[::-1])) for a in attended[:-1]]
        pair = torch.cat([moving, fixed], dim=1)
        half, full = self.long_skips(torch.cat([pair, pair.flip(1)]))
        displacement = self.decoder(attended[-1], [*reversed(skips), (half,), (full,)])
        to_moving, to_fixed = displacement.chunk(2)
        return to_moving, to_fixed

    def _encode(self, moving: Volumes, fixed: Volumes) -> list[Features]:
        """Both volumes through the encoder as one batch: moving's half first, then fixed's."""
        check_shape(tuple(moving.shape[2:]))
        return self.encoder(torch.cat([moving, fixed]))


def _swapped(features: Features) -> Features:
    """Fixed's half of the batch first, then moving's."""
    moving, fixed = features.tokens.chunk(2)
    return Features(torch.cat([fixed, moving]), features.size)

"""From fused features to the displacement field, with gap-filling long skips from the volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from paramorph.blocks import ConvBlock, NeXtBlock, NeXtDown

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from paramorph.config import NetworkConfig


class LongSkips(nn.Module):
    """Gap filling: what the encoder's 1/4 scale has lost, taken from the two volumes directly."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        e, r = config.embed_dim, config.expansion
        self.block = NeXtBlock(2, r)
        self.down = NeXtDown(2, e // 2, r)
        self.full = nn.Conv3d(2, e // 4, 1)

    def forward(self, pair: Float[Tensor, "b 2 d h w"]) -> tuple[Tensor, Tensor]:
        """The skips at half resolution (e/2 channels) and at full resolution (e/4 channels)."""
        x = self.block(pair)
        return self.down(x), self.full(x)


class UpStep(nn.Module):
    """Trilinear ×2, concatenation with the skips, two convolution blocks."""

    def __init__(self, channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels + skip_channels, out_channels)
        self.conv2 = ConvBlock(out_channels, out_channels)

    def forward(self, x: Tensor, *skips: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        return self.conv2(self.conv1(torch.cat([x, *skips], dim=1)))


class Decoder(nn.Module):
    """Five upward steps and the head: m' at 1/32 → displacement at full resolution."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        e = config.embed_dim
        self.steps = nn.ModuleList(
            [
                UpStep(8 * e, 8 * e, 4 * e),  # to 1/16, with moving's and fixed's 4e
                UpStep(4 * e, 4 * e, 2 * e),  # to 1/8
                UpStep(2 * e, 2 * e, e),  # to 1/4
                UpStep(e, e // 2, e // 2),  # to 1/2, with the long skip
                UpStep(e // 2, e // 4, e // 4),  # to full resolution
            ]
        )
        self.head = nn.Conv3d(e // 4, 3, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-5)  # training starts at the identity
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        coarsest: Float[Tensor, "b 8e d/32 h/32 w/32"],
        skips: list[tuple[Tensor, ...]],
    ) -> Float[Tensor, "b 3 d h w"]:
        """The displacement in voxels; `skips` holds what joins at 1/16, 1/8, 1/4, 1/2 and 1."""
        x = coarsest
        for step, skip in zip(self.steps, skips, strict=True):
            x = step(x, *skip)
        return self.head(x)

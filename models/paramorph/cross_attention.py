"""Window cross attention between the two volumes (LWCA): each looks at the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from paramorph.encoder import Features
from paramorph.swin import SwinBlock
from paramorph.windows import window_layout

if TYPE_CHECKING:
    from paramorph.config import NetworkConfig


class CrossAttention(nn.Module):
    """Two Swin blocks whose queries come from the other volume, then a LayerNorm.

    `other` is the same for both blocks: it is not updated in between. The same weights serve both
    directions, A(moving, fixed) and A(fixed, moving).
    """

    def __init__(self, channels: int, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            SwinBlock(channels, config.cross_heads, config.window, config.mlp_ratio)
            for _ in range(2)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, features: Features, other: Features) -> Features:
        """`features` after looking at `other`; both (b, tokens, c) of the same size."""
        tokens = features.tokens
        for block, shifted in zip(self.blocks, (False, True), strict=True):
            layout = window_layout(features.size, self.config, shifted, tokens.device)
            tokens = block(tokens, layout, query=other.tokens)
        return Features(self.norm(tokens), features.size)

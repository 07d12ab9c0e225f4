"""3-D Swin Transformer: window attention, blocks, stages, patch merging."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from paramorph.windows import (
    Size,
    WindowLayout,
    merge_table,
    relative_position_index,
    window_layout,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from paramorph.config import NetworkConfig


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learned bias per relative position.

    The query may come from other tokens than key and value; then only the rows of the projection
    that each of them needs are applied.
    """

    def __init__(self, channels: int, heads: int, window: Size) -> None:
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)
        spans = [2 * w - 1 for w in window]
        self.bias_table = nn.Parameter(torch.empty(spans[0] * spans[1] * spans[2], heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        index = relative_position_index(window)
        self.register_buffer("bias_index", index.flatten(), persistent=False)
        self.slots = index.shape[0]

    def position_bias(self) -> Float[Tensor, "heads slots slots"]:
        """The bias table spread over all pairs of slots in a window."""
        bias = self.bias_table.index_select(0, self.bias_index)
        return bias.reshape(self.slots, self.slots, self.heads).permute(2, 0, 1)

    def forward(
        self,
        tokens: Float[Tensor, "b windows*slots c"],
        layout: WindowLayout,
        query_tokens: Float[Tensor, "b windows*slots c"] | None = None,
    ) -> Float[Tensor, "b windows*slots c"]:
        channels = tokens.shape[-1]
        query_weight = self.qkv.weight[:channels] * self.scale  # cheaper than scaling the queries
        key_value_weight = self.qkv.weight[channels:]
        if query_tokens is None:
            weight = torch.cat([query_weight, key_value_weight])
            q, k, v = self._heads(F.linear(tokens, weight), layout, 3).chunk(3)
        else:
            q = self._heads(F.linear(query_tokens, query_weight), layout, 1)
            k, v = self._heads(F.linear(tokens, key_value_weight), layout, 2).chunk(2)
        logits = q @ k.transpose(-2, -1) + self.position_bias()
        if layout.mask is not None:
            logits = logits + layout.mask
        out = logits.softmax(-1) @ v  # (1, b, windows, heads, slots, c / heads)
        return self.proj(out.transpose(-3, -2).reshape(tokens.shape))

    def _heads(self, x: Tensor, layout: WindowLayout, parts: int) -> Tensor:
        """(b, windows·slots, parts·c) → (parts, b, windows, heads, slots, c / heads).

        Chunks of it keep a leading 1: dropping it would cost a graph node each when exported.
        """
        cut = x.reshape(x.shape[0], layout.windows, self.slots, parts, self.heads, -1)
        return cut.permute(3, 0, 1, 4, 2, 5)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch of a whole sample while training.

    Source:
        Huang et al., Deep Networks with Stochastic Depth (2016).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        mask = x.new_empty((x.shape[0], *[1] * (x.ndim - 1))).bernoulli_(keep)
        return x * mask / keep


class SwinBlock(nn.Module):
    """x + Attention(LN(x)), then x + MLP(LN(x)), in windows that every second block shifts.

    With `query` tokens it is the block of the cross attention: queries from LN(query), keys and
    values from LN(x), both through the same normalisation.
    """

    def __init__(
        self, channels: int, heads: int, window: Size, mlp_ratio: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, window)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp_in = nn.Linear(channels, mlp_ratio * channels)
        self.mlp_out = nn.Linear(mlp_ratio * channels, channels)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "b tokens c"],
        layout: WindowLayout,
        query: Float[Tensor, "b tokens c"] | None = None,
    ) -> Float[Tensor, "b tokens c"]:
        attended = self.attention(
            layout.to_windows(self.norm1(x)),
            layout,
            None if query is None else layout.to_windows(self.norm1(query)),
        )
        x = x + self.drop_path(layout.from_windows(attended))
        return x + self.drop_path(self.mlp_out(F.gelu(self.mlp_in(self.norm2(x)))))


class SwinStage(nn.Module):
    """The blocks of one scale; every second one shifts its windows."""

    def __init__(
        self, channels: int, heads: int, config: NetworkConfig, drop_paths: list[float]
    ) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, config.window, config.mlp_ratio, p) for p in drop_paths
        )

    def forward(self, tokens: Tensor, size: Size) -> Tensor:
        for index, block in enumerate(self.blocks):
            shifted = index % 2 == 1
            tokens = block(tokens, window_layout(size, self.config, shifted, tokens.device))
        return tokens


class PatchMerging(nn.Module):
    """Join 2×2×2 neighbouring tokens into one of twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8 * channels)
        self.reduction = nn.Linear(8 * channels, 2 * channels, bias=False)

    def forward(
        self, tokens: Float[Tensor, "b tokens c"], size: Size
    ) -> Float[Tensor, "b tokens/8 2c"]:
        neighbours = tokens.index_select(1, merge_table(size, tokens.device))
        return self.reduction(
            self.norm(neighbours.reshape(tokens.shape[0], -1, 8 * tokens.shape[2]))
        )

"""Convolutional building blocks: NeXt-B, NeXt-D and the decoder's convolution block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class NeXtBlock(nn.Module):
    """NeXt-B: depthwise convolution, normalisation, pointwise expansion and back, residual.

    The normalisation is a GroupNorm of one group per channel, written as the instance norm that it
    equals: PyTorch's GroupNorm with channels last is too imprecise for the golden outputs.

    Source:
        Roy et al., MedNeXt (2023), sec. 2.1; ConvNeXt's inverted bottleneck in 3-D.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        self.expand = nn.Conv3d(channels, expansion * channels, 1)
        self.compress = nn.Conv3d(expansion * channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return x + self.compress(F.gelu(self.expand(self.norm(self.depthwise(x)))))


class NeXtDown(nn.Module):
    """NeXt-D: the same path with stride 2 and new channels, plus a strided pointwise shortcut."""

    def __init__(self, channels: int, out_channels: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(
            channels, channels, 3, stride=2, padding=1, groups=channels, bias=False
        )
        self.norm = nn.InstanceNorm3d(channels, affine=True)
        self.expand = nn.Conv3d(channels, expansion * channels, 1)
        self.compress = nn.Conv3d(expansion * channels, out_channels, 1)
        self.shortcut = nn.Conv3d(channels, out_channels, 1, stride=2)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d/2 h/2 w/2"]:
        main = self.compress(F.gelu(self.expand(self.norm(self.depthwise(x)))))
        return main + self.shortcut(x)


class ConvBlock(nn.Module):
    """Convolution 3×3×3, instance normalisation (no affine), LeakyReLU 0.01."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(out_channels)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d h w"]:
        return F.leaky_relu(self.norm(self.conv(x)), 0.01)

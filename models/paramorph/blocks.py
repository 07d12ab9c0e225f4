"""Convolutional building blocks: NeXt-B, NeXt-D, a decoder's convolution block, a U-Net's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

#: Numbers in a slab of widened features: 16 MB in float32.
SLAB_NUMBERS = 4_000_000

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class NeXtBlock(nn.Module):
    """NeXt-B: depthwise convolution, normalisation, pointwise expansion and back, residual.

    Source:
        Roy et al., MedNeXt (2023), sec. 2.1; ConvNeXt's inverted bottleneck in 3-D.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.GroupNorm(channels, channels)
        self.expand = nn.Conv3d(channels, expansion * channels, 1)
        self.compress = nn.Conv3d(expansion * channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return x + _widened(self.norm(self.depthwise(x)), self.expand, self.compress)


class NeXtDown(nn.Module):
    """NeXt-D: the same path with stride 2 and new channels, plus a strided pointwise shortcut."""

    def __init__(self, channels: int, out_channels: int, expansion: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv3d(
            channels, channels, 3, stride=2, padding=1, groups=channels, bias=False
        )
        self.norm = nn.GroupNorm(channels, channels)
        self.expand = nn.Conv3d(channels, expansion * channels, 1)
        self.compress = nn.Conv3d(expansion * channels, out_channels, 1)
        self.shortcut = nn.Conv3d(channels, out_channels, 1, stride=2)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d/2 h/2 w/2"]:
        main = _widened(self.norm(self.depthwise(x)), self.expand, self.compress)
        return main + self.shortcut(x)


def _widened(
    x: Float[Tensor, "b c d h w"], expand: nn.Conv3d, compress: nn.Conv3d
) -> Float[Tensor, "b o d h w"]:
    """compress(gelu(expand(x))), in slabs where nothing is recorded for a gradient.

    The widened features are the largest of the network, 16 times their input; a slab of them stays
    in the cache of a CPU and needs no memory of its own. Traced graphs keep them whole.
    """
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return compress(F.gelu(expand(x)))
    depth = max(1, SLAB_NUMBERS * x.shape[2] // (x.numel() * expand.out_channels // x.shape[1]))
    slabs = [compress(F.gelu(expand(slab))) for slab in x.split(depth, dim=2)]
    return torch.cat(slabs, dim=2)


class ConvBlock(nn.Module):
    """Convolution 3×3×3, instance normalisation (no affine), LeakyReLU 0.01."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(out_channels)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d h w"]:
        return F.leaky_relu(self.norm(self.conv(x)), 0.01)


class ConvNorm(nn.Module):
    """Convolution 3×3×3, instance normalisation with weights, LeakyReLU."""

    def __init__(
        self, channels: int, out_channels: int, stride: int = 1, slope: float = 0.01
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out_channels, 3, stride, padding=1, bias=False)
        self.weight = nn.Parameter(torch.ones(out_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.slope = slope

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o e i x"]:
        x = self.conv(x)
        if len(x) == 1 and not torch.compiler.is_exporting():
            # The same of one volume, without the copies of channels that torch makes for the other.
            x = F.batch_norm(x, None, None, self.weight, self.bias, training=True)
        else:
            x = F.instance_norm(x, weight=self.weight, bias=self.bias)
        return F.leaky_relu(x, self.slope)

"""The parallel encoder: a ConvNet and a Swin Transformer branch, fused at four scales (PMFE)."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from paramorph.blocks import NeXtBlock, NeXtDown
from paramorph.swin import PatchMerging, SwinStage

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from paramorph.config import NetworkConfig
    from paramorph.windows import Size


class Features(NamedTuple):
    """Features of one scale as tokens, with the size that makes them a volume again."""

    tokens: Float[Tensor, "b d*h*w c"]
    size: Size

    def volume(self) -> Float[Tensor, "b c d h w"]:
        batch, _, channels = self.tokens.shape
        return self.tokens.transpose(1, 2).reshape(batch, channels, *self.size)


def tokens_of(volume: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b d*h*w c"]:
    """The voxels of a feature volume in C order, channels last."""
    return volume.flatten(2).transpose(1, 2)


class ConvBranch(nn.Module):
    """NeXt-B and NeXt-D in turn; features at 1/4, 1/8, 1/16 and 1/32."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        e, r = config.embed_dim, config.expansion
        widths = [1, e // 2, e, 2 * e, 4 * e, 8 * e]
        self.blocks = nn.ModuleList(NeXtBlock(c, r) for c in widths[:-1])
        self.downs = nn.ModuleList(NeXtDown(c, out, r) for c, out in pairwise(widths))

    def forward(self, x: Float[Tensor, "b 1 d h w"]) -> list[Tensor]:
        features = []
        for block, down in zip(self.blocks, self.downs, strict=True):
            x = down(block(x))
            features.append(x)
        return features[1:]  # 1/2 is on the way only


class Encoder(nn.Module):
    """Both branches on the same volumes, fused per scale.

    `cross`: LN(stage + c) + c; `post`: LN(stage) + c. In both, the next stage starts from the
    Transformer's own tokens, without the convolution features c.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.fusion = config.fusion
        widths = [config.embed_dim * 2**stage for stage in range(4)]
        self.conv_branch = ConvBranch(config)
        self.patch_embedding = nn.Conv3d(1, widths[0], 4, stride=4)
        self.patch_norm = nn.LayerNorm(widths[0])
        depth = sum(config.depths)
        drop_paths = [config.drop_path * block / (depth - 1) for block in range(depth)]
        self.stages = nn.ModuleList(
            SwinStage(c, heads, config, [drop_paths.pop(0) for _ in range(depth)])
            for c, heads, depth in zip(widths, config.heads, config.depths, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(c) for c in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in widths)

    def forward(self, x: Float[Tensor, "b 1 d h w"]) -> list[Features]:
        """Features at 1/4, 1/8, 1/16 and 1/32 of the volumes `x`."""
        fused = []
        size: Size = tuple(n // 4 for n in x.shape[2:])
        tokens = self.patch_norm(tokens_of(self.patch_embedding(x)))
        for index, (stage, norm, c) in enumerate(
            zip(self.stages, self.norms, self.conv_branch(x), strict=True)
        ):
            tokens, conv_tokens = stage(tokens, size), tokens_of(c)
            normed = norm(tokens + conv_tokens if self.fusion == "cross" else tokens)
            fused.append(Features(normed + conv_tokens, size))
            if index < len(self.merges):
                tokens = self.merges[index](tokens, size)
                size = tuple(n // 2 for n in size)
        return fused

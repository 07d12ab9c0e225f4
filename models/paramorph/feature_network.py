"""The feature network: one volume in; per voxel some channels that are alike where anatomy is.

A U-Net predicts how probable each label is. Every label has a fixed code of a few values, and the
features of a voxel are the code that it is expected to have. The refinement compares them in both
images, beside the intensities.

Source:
    Çiçek et al., 3D U-Net (2016). Registration by what a segmentation network knows: Siebert et
    al., ConvexAdam (2024); Zhang et al., VoxelOpt (2025).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from paramorph.blocks import ConvNorm
from paramorph.config import ConfigError
from paramorph.label_codes import label_codes

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

#: Exponent of the probabilities: what is half sure counts for less.
SHARPNESS = 2.0
#: Probabilities that are held at a time: 32 MB in float32.
SLAB_NUMBERS = 8_000_000


@dataclass(frozen=True)
class FeatureConfig:
    """Everything that decides which function the weights compute."""

    widths: tuple[int, ...] = (16, 32, 64, 96, 128)  # channels at each scale, finest first
    embedding: int = 12  # values per voxel that distinguish the labels
    labels: int = 2  # background among them
    channels: int = 12  # features per voxel, which a label's code consists of
    strength: float = 1.0  # length of the codes: how much features count beside the intensities
    smoothing: float = 1.0  # factor on the refinement's `feature_sigma`

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(*self.widths, self.embedding, self.channels) < 1:
            raise ConfigError(
                "feature network: expected at least two scales and one channel at each, got "
                f"{self}."
            )
        if not (self.strength > 0 and self.smoothing > 0):
            raise ConfigError(
                f"feature network: expected strength and smoothing above 0, got {self.strength} "
                f"and {self.smoothing}."
            )
        if self.labels < 2:
            raise ConfigError(
                f"feature network: expected a label beside the background, got {self.labels}."
            )

    @property
    def size_multiple(self) -> int:
        """Every axis of a volume must be a multiple of this."""
        return 2 ** (len(self.widths) - 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; `from_dict` reads them back."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> FeatureConfig:
        """The config that `as_dict` wrote.

        Raises:
            ConfigError: A field that this version does not know.
        """
        if unknown := set(fields) - set(cls.__dataclass_fields__):
            raise ConfigError(
                f"feature network: expected fields of this version, got {sorted(unknown)}; "
                "update the toolkit."
            )
        return cls(**{**fields, "widths": tuple(fields["widths"])})


class FeatureNetwork(nn.Module):
    """Volume → expected label codes per voxel."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        first = config.widths[0]
        self.stem = ConvNorm(1, first)
        self.downs = nn.ModuleList(
            nn.Sequential(ConvNorm(a, b), ConvNorm(b, b)) for a, b in pairwise(config.widths)
        )
        self.ups = nn.ModuleList(
            nn.Sequential(ConvNorm(a + b, a), ConvNorm(a, a) if a != first else nn.Identity())
            for a, b in pairwise(config.widths)
        )
        self.head = nn.Conv3d(first, config.embedding, 1)
        self.classifier = CosineClassifier(config.embedding, config.labels)
        self.register_buffer("codes", config.strength * label_codes(config.labels, config.channels))

    def forward(self, volume: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b c d h w"]:
        """Features of length at most `config.strength` in every voxel.

        Args:
            volume: Intensities in [0, 1]; every axis a multiple of `config.size_multiple`.
        """
        embedding = self.embedding(volume).float().movedim(1, -1)  # (b, d, h, w, e)
        # Voxels as rows, which engines turn into probabilities ten times faster than channels.
        rows = embedding.flatten(0, 3).split(SLAB_NUMBERS // self.config.labels)
        codes = [(SHARPNESS * self.classifier(part)).softmax(dim=1) @ self.codes.T for part in rows]
        return torch.cat(codes).unflatten(0, embedding.shape[:4]).movedim(-1, 1)

    def embedding(self, volume: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b e d h w"]:
        """What distinguishes the labels."""
        x = self.stem(volume)
        skips = [x]
        for down in self.downs:
            x = down(F.max_pool3d(x, 2))
            skips.append(x)
        skips.pop()
        for up, skip in zip(reversed(self.ups), reversed(skips), strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        return self.head(x)


class CosineClassifier(nn.Module):
    """One vector per label; the logits of an embedding are its cosines with them, scaled."""

    def __init__(self, embedding: int, labels: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(F.normalize(torch.randn(embedding, labels), dim=0))
        self.bias = nn.Parameter(torch.zeros(labels))
        self.log_scale = nn.Parameter(torch.tensor([math.log(8.0)]))

    def forward(self, embedding: Float[Tensor, "n e"]) -> Float[Tensor, "n labels"]:
        vectors = self.log_scale.exp() * F.normalize(self.vectors, dim=0)
        return F.normalize(embedding, dim=1) @ vectors + self.bias

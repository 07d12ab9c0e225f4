"""Codes of labels: vectors of length 1, unlike each other where labels lie near each other.

A refinement compares the codes that voxels are expected to have. Labels a few millimetres apart
can be taken for one another, so their codes must differ; the two sides of a brain may share one.
So a few channels distinguish many labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

_SEED = 0
_OFFSETS = 60  # at which neighbours are counted in each map
_DISTANCE_MM = 4.0  # standard deviation of these offsets along each axis
_STEPS, _RATE = 1500, 0.05  # of Adam
_SHARPNESS = 6.0  # how much the most alike pairs count beyond the others
_LEAST = 0.02  # weight of labels that never meet


def nearness(
    maps: Iterable[Int[Tensor, "1 1 d h w"]], labels: int, spacing_mm: Sequence[float]
) -> Float[Tensor, "labels labels"]:
    """How often two labels lie within some millimetres, from 0 to 1 for the closest of each.

    Args:
        maps: Numbers of labels; negative ones do not count.
        labels: How many there are.
        spacing_mm: Of the maps' voxels.
    """
    rng = torch.Generator().manual_seed(_SEED)
    offsets = _DISTANCE_MM * torch.randn(_OFFSETS, 3, generator=rng) / torch.tensor(spacing_mm)
    counts = torch.zeros(labels * labels)
    for numbers in maps:
        volume = numbers[0, 0]
        for offset in offsets.round().int().tolist():
            here = volume[tuple(slice(max(0, -o), n - max(0, o)) for o, n in _axes(offset, volume))]
            there = volume[tuple(slice(max(0, o), n + min(0, o)) for o, n in _axes(offset, volume))]
            known = (here >= 0) & (there >= 0)
            pairs = here[known] * labels + there[known]
            counts += torch.bincount(pairs.flatten(), minlength=labels * labels)
    counts = counts.view(labels, labels).fill_diagonal_(0)
    counts = counts + counts.T
    size = counts.sum(1).clamp_min(1).sqrt()
    near = counts / size[:, None] / size
    near = near / near.amax(1, keepdim=True).clamp_min(1e-9)
    return (near + near.T) / 2


def label_codes(
    labels: int, channels: int, near: Float[Tensor, "labels labels"] | None = None
) -> Float[Tensor, "channels labels"]:
    """A code of `channels` values for each label; the same every time.

    At right angles to each other where there are channels enough, else as unlike as `near` requires
    for; without that, random.
    """
    rng = torch.Generator().manual_seed(_SEED)
    codes = torch.randn(channels, labels, generator=rng)
    if labels <= channels:
        return torch.linalg.qr(codes).Q
    if near is None:
        return F.normalize(codes, dim=0)
    weights = (near.sqrt() + _LEAST).fill_diagonal_(0)
    codes.requires_grad_()
    optimizer = torch.optim.Adam([codes], _RATE)
    for _ in range(_STEPS):
        unit = F.normalize(codes, dim=0)
        alike = (weights * torch.exp(_SHARPNESS * (unit.T @ unit))).sum()
        optimizer.zero_grad()
        alike.backward()
        optimizer.step()
    return F.normalize(codes.detach(), dim=0)


def _axes(offset: Sequence[int], volume: Tensor) -> list[tuple[int, int]]:
    return list(zip(offset, volume.shape, strict=True))

"""Random changes to a training pair: pose and size, left-right, contrast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far the two volumes of a pair are changed; zeros switch a change off.

    The common changes apply to both volumes alike: they show the network other poses. The own
    changes differ between the two: what an affine alignment leaves behind.
    """

    common_rotation_deg: float = 12.0  # about each axis, uniform in ±
    common_scale: float = 0.1  # relative size, uniform in ±
    own_rotation_deg: float = 2.0
    own_scale: float = 0.02
    own_shift_vox: float = 1.0
    flip_probability: float = 0.5  # of the first axis (left-right in RAS and LAS), both alike
    gamma: float = 0.2  # exponent in exp(±gamma), for each volume

    def __call__(
        self,
        moving: Float[Tensor, "b 1 d h w"],
        fixed: Float[Tensor, "b 1 d h w"],
        rng: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The changed pair; `rng` (on the CPU) decides, so equal seeds give equal pairs."""
        shape = moving.shape[2:]
        common = _random_affine(rng, shape, self.common_rotation_deg, self.common_scale, 0.0)
        if torch.rand((), generator=rng) < self.flip_probability:
            common = common @ torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
        changed = []
        for volume in (moving, fixed):
            own = _random_affine(
                rng, shape, self.own_rotation_deg, self.own_scale, self.own_shift_vox
            )
            gamma = math.exp(self.gamma * _uniform(rng))
            changed.append(_resample(volume, common @ own).clamp(0, 1) ** gamma)
        return changed[0], changed[1]


def _uniform(rng: torch.Generator, *size: int) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(size, generator=rng) * 2 - 1


def _random_affine(
    rng: torch.Generator, shape: torch.Size, rotation_deg: float, scale: float, shift_vox: float
) -> Float[Tensor, "4 4"]:
    """Centred voxel coordinates (D, H, W) of the result → those of the source."""
    matrix = torch.eye(4)
    for axis, angle in enumerate((_uniform(rng, 3) * math.radians(rotation_deg)).tolist()):
        a, b = [other for other in range(3) if other != axis]
        turn = torch.eye(4)
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ turn
    matrix[:3, :3] *= 1 + scale * _uniform(rng).item()
    matrix[:3, 3] = shift_vox * _uniform(rng, 3)
    return matrix


def _resample(volume: Tensor, affine: Float[Tensor, "4 4"]) -> Tensor:
    """The volume read at `affine` of its centred voxel coordinates; outside is its border."""
    half = torch.tensor([(n - 1) / 2 for n in volume.shape[2:]])
    theta = affine[:3].clone()
    theta[:, :3] = theta[:, :3] * half / half[:, None]  # half extents → [-1, 1]
    theta[:, 3] /= half
    theta = theta.flip(0)  # grid_sample counts W first
    theta = torch.cat([theta[:, :3].flip(1), theta[:, 3:]], dim=1)
    theta = theta.to(volume.device).expand(volume.shape[0], -1, -1)
    grid = F.affine_grid(theta, list(volume.shape), align_corners=True)
    return F.grid_sample(volume, grid, padding_mode="border", align_corners=True)

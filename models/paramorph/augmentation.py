"""Random changes to a training pair: pose, size and shape, left-right, intensities.

Not from a library: MONAI and TorchIO need two or three interpolations, each of which blurs, for
what is one here, and take longer (`benchmarks/results/settled`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from paramorph.options import OptionError, check_range, option

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped
    from torch import Tensor


@dataclass(frozen=True)
class Change:
    """What happens to one volume of a pair, drawn for volumes of one shape."""

    grid: Float[Tensor, "1 d h w 3"]  # where to read, in the coordinates of torch's grid_sample
    gamma: float  # exponent of the intensities
    gain: Float[Tensor, "1 1 d h w"]  # factor of the intensities, after the exponent
    noise: Float[Tensor, "1 1 d h w"]  # added last

    def image(self, volume: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The volume moved, and in other intensities of [0, 1]; what is exactly 0 stays so."""
        return self.intensities(self._moved(volume, "bilinear"))

    def intensities(self, volume: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """The volume where it is, in the other intensities."""
        changed = volume.clamp(0, 1) ** self.gamma * self.gain
        return (changed + self.noise * (changed > 0)).clamp(0, 1)

    def labels(
        self, labels: Shaped[Tensor, "b 1 i j k"], extent: Float[Tensor, " 3"] | None = None
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The label map moved as the image is; each voxel takes its nearest label.

        Args:
            labels: On the voxels that the change was drawn for, unless `extent` is given.
            extent: Of the change's grid along D, H and W, as a share of the label map's: for a map
                that is larger or finer, about the same middle.
        """
        return self._moved(labels.float(), "nearest", extent).to(labels.dtype)

    def _moved(self, volume: Tensor, mode: str, extent: Tensor | None = None) -> Tensor:
        """Beyond the volume lies its border."""
        grid = self.grid.expand(volume.shape[0], -1, -1, -1, -1)
        if extent is not None:
            grid = grid * extent.flip(0).to(grid)
        return F.grid_sample(volume, grid, mode, padding_mode="border", align_corners=True)


@dataclass(frozen=True)
class Augmentation:
    """How far the two volumes of a pair are changed; zeros switch a change off.

    The common changes apply to both volumes alike: they show the network other poses and other
    anatomies. The own changes differ between the two: what an affine alignment leaves behind, and
    what scanners do.

    Raises:
        OptionError: A negative extent, a probability above 1, fewer than 2 knots.
    """

    common_rotation_deg: float = option(12.0, "of both alike about each axis, uniform in ±")
    common_scale: float = option(0.1, "relative change of size of both alike, uniform in ±")
    own_rotation_deg: float = option(2.0, "of each volume about each axis, uniform in ±")
    own_scale: float = option(0.02, "relative change of size of each volume, uniform in ±")
    own_stretch: float = option(0.0, "the same along each of its axes by itself, uniform in ±")
    own_shift_vox: float = option(1.0, "of each volume along each axis, uniform in ±")
    flip_probability: float = option(0.5, "of mirroring both along an axis of flip_axes")
    flip_axes: tuple[int, ...] = option(
        (0,), "that may be mirrored, each by itself: 0 left-right, 1 front-back, 2 up-down"
    )
    common_elastic_vox: float = option(2.0, "bound of the random smooth displacement of both alike")
    own_elastic_vox: float = option(0.0, "bound of the random smooth displacement of each volume")
    elastic_knots: int = option(6, "random vectors along each axis, interpolated in between")
    gamma: float = option(0.2, "intensities of each volume to the power of exp(±gamma)")
    bias: float = option(0.2, "smooth factor of each volume's intensities, within exp(±bias)")
    noise: float = option(0.02, "largest standard deviation of the noise of each volume")

    def __post_init__(self) -> None:
        if not set(self.flip_axes) <= {0, 1, 2}:
            raise OptionError(f"flip_axes: expected some of 0, 1, 2, got {self.flip_axes}.")
        check_range(self, (f.name for f in fields(self) if f.name != "flip_axes"))
        check_range(self, ("common_scale", "own_scale", "own_stretch", "flip_probability"), most=1)
        check_range(self, ("elastic_knots",), least=2)

    def __call__(
        self,
        moving: Float[Tensor, "b 1 d h w"],
        fixed: Float[Tensor, "b 1 d h w"],
        rng: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """The changed pair; equal seeds of `rng` (on the CPU) give equal pairs."""
        first, second = self.draw(moving.shape[2:], rng, moving.device)
        return first.image(moving), second.image(fixed)

    def draw(
        self, shape: torch.Size, rng: torch.Generator, device: torch.device | str = "cpu"
    ) -> tuple[Change, Change]:
        """The changes of a moving and a fixed volume of `shape` on `device`.

        For label maps that move with their images; `rng` (on the CPU) decides everything.
        """
        common = _random_affine(rng, self.common_rotation_deg, self.common_scale, 0.0)
        for axis in self.flip_axes:
            if torch.rand((), generator=rng) < self.flip_probability:
                common[:, axis] *= -1
        elastic = self._elastic(rng, shape, self.common_elastic_vox, device)
        return self._own(rng, shape, common, elastic), self._own(rng, shape, common, elastic)

    def _own(
        self,
        rng: torch.Generator,
        shape: torch.Size,
        common: Float[Tensor, "4 4"],
        elastic: Float[Tensor, "1 3 d h w"],
    ) -> Change:
        own = _random_affine(rng, self.own_rotation_deg, self.own_scale, self.own_shift_vox)
        if self.own_stretch:
            own[:, :3] *= 1 + self.own_stretch * _uniform(rng, 3)
        device = elastic.device
        shift = elastic + self._elastic(rng, shape, self.own_elastic_vox, device)
        gamma = math.exp(self.gamma * _uniform(rng))
        gain, noise = torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1, 1, 1, 1)
        if self.bias:
            gain = torch.exp(self.bias * smooth_noise(rng, 1, shape, 4, device))
        if self.noise:
            deviation = self.noise * torch.rand((), generator=rng).item()
            noise = deviation * torch.randn(1, 1, *shape, generator=rng)
        return Change(_grid(common @ own, shift, shape), gamma, gain.to(device), noise.to(device))

    def _elastic(
        self,
        rng: torch.Generator,
        shape: torch.Size,
        largest_vox: float,
        device: torch.device | str,
    ) -> Float[Tensor, "1 3 d h w"]:
        """Smooth random displacement in voxels, or a single 0 for all."""
        if not largest_vox:
            return torch.zeros(1, 3, 1, 1, 1, device=device)
        return largest_vox * smooth_noise(rng, 3, shape, self.elastic_knots, device)


def _uniform(rng: torch.Generator, *size: int) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(size, generator=rng) * 2 - 1


def _random_affine(
    rng: torch.Generator, rotation_deg: float, scale: float, shift_vox: float
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


def smooth_noise(
    rng: torch.Generator,
    channels: int,
    shape: torch.Size,
    knots: int,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "1 c d h w"]:
    """Random values in [-1, 1] at `knots` points per axis, smoothly interpolated."""
    noise = _uniform(rng, 1, channels, knots, knots, knots).to(device)
    coarse = F.interpolate(noise, [-(-n // 4) for n in shape], mode="trilinear", align_corners=True)
    for _ in range(2):  # rounds off the kinks of linear interpolation
        coarse = F.avg_pool3d(coarse, 5, stride=1, padding=2, count_include_pad=False)
    return F.interpolate(coarse, shape, mode="trilinear", align_corners=False)


def _grid(
    affine: Float[Tensor, "4 4"], displacement_vox: Float[Tensor, "1 3 d h w"], shape: torch.Size
) -> Float[Tensor, "1 d h w 3"]:
    """The positions `affine(p) + displacement(p)` of centred voxels p, for torch's grid_sample."""
    half = torch.tensor([(n - 1) / 2 for n in shape])
    theta = affine[:3].clone()
    theta[:, :3] = theta[:, :3] * half / half[:, None]  # half extents → [-1, 1]
    theta[:, 3] /= half
    theta = theta.flip(0)  # grid_sample counts W first
    theta = torch.cat([theta[:, :3].flip(1), theta[:, 3:]], dim=1)
    device = displacement_vox.device
    grid = F.affine_grid(theta[None].to(device), [1, 1, *shape], align_corners=True)
    half = half.to(device)
    return grid + (displacement_vox / half[:, None, None, None])[0].flip(0).movedim(0, -1)

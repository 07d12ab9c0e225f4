"""Images of any contrast, drawn from label maps while a network trains.

What a network has seen in thousands of invented contrasts it finds in real ones that nobody gave
it: each label gets an intensity at random, then come texture, bias field, blur, thick slices,
noise, and now and then everything outside the learned labels is taken away, as brain extraction
does. Position and shape come from `Augmentation`, which moves the label map beforehand.

Source:
    Billot et al., SynthSeg (2023); Hoffmann et al., SynthMorph (2022), also for the random shapes
    about an organ whose surroundings nobody labelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from paramorph.augmentation import smooth_noise
from paramorph.options import OptionError, check_range, option

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

_BRIGHTEST = 0.998  # quantile that becomes 1, as in the preparation of real images
_DARK = 0.05  # bound of the intensity of air


@dataclass(frozen=True)
class Synthesis:
    """How the images are drawn; widths are in voxels of the network grid.

    Raises:
        OptionError: A negative width, or a probability outside [0, 1].
    """

    alike: tuple[tuple[int, ...], ...] = option(
        (), "labels that have one intensity, such as a structure's left and right"
    )
    tissues: tuple[tuple[int, ...], ...] = option(
        (), "labels of one tissue, whose intensities mostly lie near one another"
    )
    tissue_probability: float = option(0.7, "of a tissue's labels lying near one another")
    tissue_spread: float = option(0.08, "standard deviation of their intensities")
    shapes: int = option(0, "random regions of the background, each with an intensity of its own")
    dark_probability: float = option(0.7, "of a background, or its first region, that is dark")
    texture: float = option(0.08, "largest standard deviation of the noise inside a label")
    lumps: float = option(0.1, "largest amplitude of smooth variation inside a label")
    strip_probability: float = option(0.5, "of taking away all but the learned labels")
    blur: float = option(0.9, "largest standard deviation of the blur along each axis")
    thick_probability: float = option(0.3, "of slices thicker than the grid along one axis")
    thickness: float = option(4.0, "of the thickest slices")

    def __post_init__(self) -> None:
        check_range(self, ("shapes", "tissue_spread", "texture", "lumps", "blur", "thickness"))
        kinds = ("tissue", "dark", "strip", "thick")
        check_range(self, (f"{kind}_probability" for kind in kinds), most=1)


class Painter:
    """Draws images of label maps that hold the numbers 0, 1, … of `labels`.

    Args:
        options: How.
        labels: What the numbers stand for; number 0 is the background, label 0.
        learned: Labels that stay when the others are taken away.

    Raises:
        OptionError: A label in two groups of a kind.
    """

    def __init__(self, options: Synthesis, labels: Sequence[int], learned: Iterable[int]) -> None:
        self.options = options
        number = {label: n for n, label in enumerate(labels)}
        self.alike = _groups("alike", options.alike, number)
        self.tissues = _groups("tissues", options.tissues, number)
        stays = set(learned) - {0}
        self.stays = torch.tensor([label in stays for label in labels])

    def __call__(
        self, numbers: Int[Tensor, "1 1 d h w"], rng: torch.Generator
    ) -> tuple[Float[Tensor, "1 1 d h w"], Bool[Tensor, "1 1 d h w"]]:
        """An image in [0, 1], and where it shows what the label map says.

        Elsewhere, which is outside the learned labels of an image that was stripped, lies nothing.
        Equal seeds of `rng` give equal images.
        """
        o, shape = self.options, numbers.shape[2:]
        means, spreads, lumps = self._intensities(rng)
        image = means[numbers]
        if o.shapes:
            image = torch.where(numbers == 0, self._regions(shape, rng), image)
        image += spreads[numbers] * torch.randn(numbers.shape, generator=rng)
        image += lumps[numbers] * smooth_noise(rng, 1, shape, int(_between(rng, 5, 24)))
        shown = torch.ones_like(numbers, dtype=torch.bool)
        if _chance(rng, o.strip_probability):
            shown = self._inside(numbers, rng)
        image = image.clamp_min(0) * shown
        image = _blurred(image, [_between(rng, 0, o.blur) for _ in range(3)])
        if _chance(rng, o.thick_probability):
            axis = int(_between(rng, 0, 3))
            image = _in_thick_slices(image, axis, _between(rng, 1, o.thickness))
        bright = image[shown][::7].quantile(_BRIGHTEST) if shown.any() else image.new_ones(())
        return (image / bright.clamp_min(1e-3)).clamp(0, 1) * shown, shown

    def _intensities(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, standard deviation of the noise, amplitude of the lumps, per number."""
        o, count = self.options, len(self.stays)
        means = torch.rand(count, generator=rng)
        for group in self.tissues:
            near = torch.rand((), generator=rng) + o.tissue_spread * torch.randn(
                len(group), generator=rng
            )
            if _chance(rng, o.tissue_probability):
                means[group] = near.clamp(0, 1)
        spreads = o.texture * torch.rand(count, generator=rng)
        lumps = o.lumps * torch.rand(count, generator=rng)
        for group in self.alike:
            for values in (means, spreads, lumps):
                values[group] = values[group[0]].clone()
        if not o.shapes and _chance(rng, o.dark_probability):
            means[0], spreads[0], lumps[0] = _between(rng, 0, _DARK), _DARK / 4, 0.0
        return means, spreads, lumps

    def _regions(self, shape: torch.Size, rng: torch.Generator) -> Float[Tensor, "1 1 d h w"]:
        """Random regions, each of one intensity."""
        heights = smooth_noise(rng, self.options.shapes, shape, int(_between(rng, 4, 10)))
        means = torch.rand(self.options.shapes, generator=rng)
        if _chance(rng, self.options.dark_probability):
            means[0] = _between(rng, 0, _DARK)
        return means[heights.argmax(dim=1, keepdim=True)]

    def _inside(self, numbers: Tensor, rng: torch.Generator) -> Bool[Tensor, "1 1 d h w"]:
        """The learned labels, sometimes with a rim: what a brain extraction may leave."""
        inside = self.stays[numbers]
        rim = int(_between(rng, 0, 3))
        if rim:
            inside = F.max_pool3d(inside.float(), 2 * rim + 1, 1, rim) > 0
        return inside


def _groups(name: str, groups: Sequence[Sequence[int]], number: dict[int, int]) -> list[Tensor]:
    """The groups as numbers, without labels that no map has."""
    every = [label for group in groups for label in group]
    if len(every) != len(set(every)):
        twice = next(label for label in every if every.count(label) > 1)
        raise OptionError(f"{name}: expected each label in one group, got {twice} in two.")
    known = ([number[label] for label in group if label in number] for group in groups)
    return [torch.tensor(group) for group in known if len(group) > 1]


def _between(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=rng).item()


def _chance(rng: torch.Generator, probability: float) -> bool:
    return torch.rand((), generator=rng).item() < probability


def _blurred(image: Float[Tensor, "1 1 d h w"], sigmas: Sequence[float]) -> Tensor:
    for axis, sigma in enumerate(sigmas):
        if sigma < 0.2:  # less than a voxel knows of
            continue
        radius = math.ceil(2.5 * sigma)
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        kernel = (taps / taps.sum()).view([-1 if a == axis else 1 for a in range(3)])
        padding = [0, 0, 0]
        padding[axis] = radius
        image = F.conv3d(image, kernel[None, None], padding=padding)
    return image


def _in_thick_slices(image: Float[Tensor, "1 1 d h w"], axis: int, thickness: float) -> Tensor:
    """Averaged over slices of that many voxels, and interpolated linearly in between."""
    shape = list(image.shape[2:])
    fewer = [max(1, round(n / thickness)) if a == axis else n for a, n in enumerate(shape)]
    return F.interpolate(F.interpolate(image, fewer, mode="area"), shape, mode="trilinear")

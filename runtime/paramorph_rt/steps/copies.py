"""Small copies of an image for the affine search: its foreground and a little around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..geometry.resample import averaged, resample_to_grid
from ..geometry.spaces import Grid, from_sitk, to_sitk
from ..images.volume import Volume
from .foreground import foreground_box, foreground_of

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True, eq=False)
class Copy:
    """An image, or a small copy of it; what its hole shows is unknown."""

    image: Volume
    hole: Volume | None = None

    @property
    def foreground(self) -> Bool[np.ndarray, "i j k"]:
        return foreground_of(self.image)

    @property
    def centre(self) -> Float[np.ndarray, " 3"]:
        """Centre of gravity of the foreground, world mm (RAS)."""
        return self.image.grid.world(np.argwhere(self.foreground).mean(axis=0))

    @property
    def foreground_mm3(self) -> float:
        return float(np.count_nonzero(self.foreground) * np.prod(self.image.grid.spacing))

    @property
    def size_mm(self) -> float:
        """Side of the cube with the volume of the foreground's box."""
        lo, hi = foreground_box(self.image)
        return float(np.prod(np.subtract(hi, lo) * self.image.grid.spacing) ** (1 / 3))

    def near_foreground(self) -> Bool[np.ndarray, "i j k"]:
        """Two voxels around it show a metric its edge; more background only dilutes it."""
        grid = self.image.grid
        grown = sitk.BinaryDilate(to_sitk(self.foreground.astype(np.uint8), grid), [2, 2, 2])
        near = from_sitk(grown)[0].astype(bool)
        return near if self.hole is None else near & (self.hole.data == 0)

    def shrunk(self, spacing_mm: float) -> Copy:
        """A copy of the foreground and its surroundings, at about the given spacing.

        Axes that are coarser already keep their spacing. Nothing beyond the image is included: its
        edges in both copies would match each other instead of the anatomy.
        """
        image = self.image
        lo, hi = (np.array(side) for side in foreground_box(image))
        spacing = np.maximum(image.grid.spacing, spacing_mm)
        margin = np.ceil(2 * spacing / image.grid.spacing).astype(int)
        lo, hi = np.maximum(lo - margin, 0), np.minimum(hi + margin, image.grid.shape)
        shape = np.maximum(((hi - lo) * image.grid.spacing / spacing).astype(int), 4)
        centre = image.grid.world((lo + hi - 1) / 2)
        grid = Grid.from_spacing(shape, spacing, image.grid.directions, centre=centre)
        small = resample_to_grid(averaged(image.cropped(lo, hi), spacing), grid)
        hole = self.hole and Volume(
            resample_to_grid(self.hole, grid, interpolation="nearest"), grid, self.hole.name
        )
        return Copy(Volume(small, grid, image.name), hole)

    def framed(self) -> Copy:
        """The image inside a wide frame of its median.

        Mattes mutual information counts what lies inside both images, and a small overlap is easily
        alike: the frame makes leaving the moving image cost something. The fixed image has none, so
        its edge cannot match the frame's.
        """
        width = [n // 2 for n in self.image.data.shape]
        image = self.image.padded(width, float(np.median(self.image.data)))
        return Copy(image, self.hole and self.hole.padded(width, 0))

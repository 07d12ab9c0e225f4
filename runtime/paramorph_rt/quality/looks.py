"""What an image looks like, in a few figures and a small map that images can be compared by.

The map divides the box around the foreground into the same number of cells, whatever the size of
the body, along right, anterior and superior. Each cell holds the rank of its intensity among all
cells of the foreground, so no monotone change of intensities shows, but another contrast does, and
so does another anatomy, or one that lies upside down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from ..geometry.resample import averaged, resample_to_grid
from ..geometry.spaces import Grid
from ..images.background import faces
from ..images.volume import Volume
from ..steps.foreground import foreground_box, foreground_threshold

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

#: Cells along right, anterior and superior: some 8 mm each for an adult brain.
CELLS = (20, 24, 20)
#: Fewer cells in common say nothing.
LEAST_CELLS = 100


@dataclass(frozen=True, eq=False)
class Look:
    """What an image looks like.

    Attributes:
        name: Of its file.
        volume_ml: Of the foreground.
        extent_mm: Of the box around it, along right, anterior and superior.
        spacing_mm: Its finest and its coarsest.
        at_border: Share of the image's border that is foreground, 0 to 1.
        flat: Share of neighbouring foreground voxels with exactly the same intensity, those with
            the commonest intensity left out; high in label maps and drawn shapes.
        commonest: Share of the foreground that has its commonest intensity; high where a
            background is not the darkest thing in the image.
        smooth: Correlation of neighbouring foreground voxels; near 0 for noise.
        ranks: The map, 0 to 1, NaN where there is no foreground.
        coarse: The image around its foreground, in voxels about as large as the map's cells.
        threshold: Above which its foreground is.
    """

    name: str
    volume_ml: float
    extent_mm: tuple[float, float, float]
    spacing_mm: tuple[float, float]
    at_border: float
    flat: float
    commonest: float
    smooth: float
    ranks: Float[np.ndarray, "20 24 20"]
    coarse: Volume
    threshold: float

    @property
    def size_mm(self) -> float:
        """Side of the cube with the volume of the foreground's box."""
        return float(np.prod(self.extent_mm) ** (1 / 3))


def look_of(volume: Volume) -> Look:
    """Look at an image, masked already where there is a mask.

    Args:
        volume: Image with contrast.
    """
    grid = volume.grid
    threshold = foreground_threshold(volume.data)
    low, high = (np.array(corner) for corner in foreground_box(volume))
    box = volume.cropped(low, high)
    data = box.data
    foreground = data > threshold
    count = int(np.count_nonzero(foreground))
    along = _anatomical(grid)
    extents = np.empty(3)
    extents[along[:, 0].astype(int)] = (high - low) * grid.spacing
    flat, commonest, smooth = _texture(data, foreground)
    coarse = averaged(box, extents.min() / max(CELLS))
    return Look(
        name=volume.name,
        volume_ml=count * float(np.prod(grid.spacing)) / 1000,
        extent_mm=(float(extents[0]), float(extents[1]), float(extents[2])),
        spacing_mm=(float(grid.spacing.min()), float(grid.spacing.max())),
        at_border=_at_border(volume.data, threshold),
        flat=flat,
        commonest=commonest,
        smooth=smooth,
        ranks=_ranks(box.grid, coarse, threshold),
        coarse=coarse,
        threshold=threshold,
    )


def likeness(first: Float[np.ndarray, "20 24 20"], second: Float[np.ndarray, "20 24 20"]) -> float:
    """Correlation of two maps where both have foreground, -1 to 1; 0 where nearly none has."""
    both = ~(np.isnan(first) | np.isnan(second))
    if np.count_nonzero(both) < LEAST_CELLS:
        return 0.0
    a, b = (each[both] - each[both].mean() for each in (first, second))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0


def asymmetry(ranks: Float[np.ndarray, "20 24 20"]) -> Float[np.ndarray, "20 24 20"]:
    """How a map differs from its mirror image, right for left."""
    return ranks - ranks[::-1]


def _anatomical(grid: Grid) -> Float[np.ndarray, "3 2"]:
    """For each voxel axis the closest of right, anterior and superior, and its sign."""
    return nib.io_orientation(grid.affine)


def _at_border(data: Float[np.ndarray, "i j k"], threshold: float) -> float:
    border = faces(data)
    count = sum(int(np.count_nonzero(face > threshold)) for face in border)
    return count / sum(face.size for face in border)


def _texture(
    data: Float[np.ndarray, "i j k"], foreground: Bool[np.ndarray, "i j k"]
) -> tuple[float, float, float]:
    """`flat`, `commonest` and `smooth`; pairs of neighbours along the first axis."""
    values, counts = np.unique(data[foreground], return_counts=True)
    commonest = values[counts.argmax()]
    both = foreground[1:] & foreground[:-1]
    first, second = data[1:][both].astype(np.float64), data[:-1][both].astype(np.float64)
    if not first.size:
        return 0.0, float(counts.max() / counts.sum()), 0.0
    equal = (first == second) & ((first != commonest) if values.size > 2 else True)
    spread = first.std() * second.std()
    covariance = ((first - first.mean()) * (second - second.mean())).mean()
    return (
        float(equal.mean()),
        float(counts.max() / counts.sum()),
        float(covariance / spread) if spread > 0 else 1.0,
    )


def axes_of(grid: Grid) -> Float[np.ndarray, "3 3"]:
    """A grid's own axes as columns (RAS): those closest to right, anterior and superior."""
    along = _anatomical(grid)
    axes = np.empty((3, 3))
    axes[:, along[:, 0].astype(int)] = grid.directions * along[:, 1]
    return axes


def _ranks(box: Grid, coarse: Volume, threshold: float) -> Float[np.ndarray, "20 24 20"]:
    """The map of a box that is full of foreground from end to end, along its own axes."""
    extents = np.empty(3)
    extents[_anatomical(box)[:, 0].astype(int)] = box.spacing * box.shape
    centre = box.world((np.array(box.shape) - 1) / 2)
    cells = Grid.from_spacing(CELLS, extents / CELLS, axes_of(box), centre=centre)
    return ranked(resample_to_grid(coarse, cells), threshold)


def ranked(cells: Float[np.ndarray, "20 24 20"], threshold: float) -> Float[np.ndarray, "20 24 20"]:
    """Ranks of intensities among the cells of the foreground."""
    foreground = cells > threshold
    ranks = np.full(CELLS, np.nan, np.float32)
    values = cells[foreground]
    order = np.searchsorted(np.sort(values), values, side="left")
    order = order + np.searchsorted(np.sort(values), values, side="right")
    ranks[foreground] = order / (2 * max(values.size, 1))
    return ranks

"""What can be wrong with a moving image: changes to its voxels and those of its labels.

Every function takes an image and its label map and returns both changed. Movements are resampled
onto a grid of the same voxel axes that has room for all of it, so the data change and not the
header; labels go by nearest neighbour.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import from_matvec

from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume
from paramorph_rt.steps.foreground import foreground_threshold

if TYPE_CHECKING:
    from jaxtyping import Float

    Pair = tuple[Volume, Volume]

BIAS = 0.3  # of the intensity, at most
NOISE = 0.05  # standard deviation, of the 99.5th percentile


def rotated(image: Volume, labels: Volume, degrees: float, axis: Float[np.ndarray, " 3"]) -> Pair:
    """Turn about the middle of the image; `axis` in the world (RAS), of any length."""
    radians = np.radians(degrees) * np.asarray(axis) / np.linalg.norm(axis)
    turn = sitk.VersorTransform(radians.tolist(), float(np.linalg.norm(radians)))
    return _moved(image, labels, np.array(turn.GetMatrix()).reshape(3, 3))


def rotated_at_random(image: Volume, labels: Volume, degrees: float) -> Pair:
    """Turn about an axis that the image's name chooses: random, and the same every time."""
    rng = np.random.default_rng(list(image.name.encode()))
    return rotated(image, labels, degrees, rng.normal(size=3))


def scaled(image: Volume, labels: Volume, factor: float) -> Pair:
    """Make everything larger or smaller."""
    return _moved(image, labels, factor * np.eye(3))


def coarser(image: Volume, labels: Volume, spacing_mm: float) -> Pair:
    """Resample to thicker voxels, smoothed as a scanner would."""
    shape = np.ceil(np.multiply(image.grid.shape, image.grid.spacing) / spacing_mm)
    grid = _grid_about(image, image.grid.directions * spacing_mm, shape)
    return _on_grid(image, labels, grid, np.eye(4))


def reoriented(image: Volume, labels: Volume, orientation: str) -> Pair:
    """The same voxels in the same places, stored along other axes."""
    start = nib.io_orientation(image.grid.affine)
    steps = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(orientation))
    affine = image.grid.affine @ nib.orientations.inv_ornt_aff(steps, image.grid.shape)

    def stored(volume: Volume) -> Volume:
        data = np.ascontiguousarray(nib.orientations.apply_orientation(volume.data, steps))
        return Volume(data, Grid(data.shape, affine), volume.name)

    return stored(image), stored(labels)


def biased(image: Volume, labels: Volume) -> Pair:
    """Multiply by a field that falls from 1 + BIAS to 1 - BIAS from one corner to the other."""
    i, j, k = np.ix_(*[np.linspace(-1, 1, n) for n in image.grid.shape])
    field = 1 + BIAS * np.sin((i + j + k) * np.pi / 6)
    return Volume((image.data * field).astype(np.float32), image.grid, image.name), labels


def noisy(image: Volume, labels: Volume) -> Pair:
    """Add noise to the foreground; around it a skull-stripped image has none."""
    rng = np.random.default_rng(list(image.name.encode()))
    noise = rng.normal(scale=NOISE * np.percentile(image.data, 99.5), size=image.grid.shape)
    inside = image.data > foreground_threshold(image.data)
    data = np.where(inside, np.abs(image.data + noise), image.data)
    return Volume(data.astype(np.float32), image.grid, image.name), labels


TROUBLES: dict[str, Callable[[Volume, Volume], Pair]] = {
    "rotated 15° about left–right": partial(rotated, degrees=15, axis=(1, 0, 0)),
    "rotated 15° about posterior–anterior": partial(rotated, degrees=15, axis=(0, 1, 0)),
    "rotated 15° about inferior–superior": partial(rotated, degrees=15, axis=(0, 0, 1)),
    "rotated 15° about a random axis": partial(rotated_at_random, degrees=15),
    "10 % larger": partial(scaled, factor=1.1),
    "10 % smaller": partial(scaled, factor=0.9),
    "bias field of ±30 %": biased,
    "noise of 5 %": noisy,
    "resampled to 2 mm": partial(coarser, spacing_mm=2.0),
    "stored as PIR": partial(reoriented, orientation="PIR"),
    "stored as RSP": partial(reoriented, orientation="RSP"),
}


def same_places(first: Grid, second: Grid) -> bool:
    """Whether two grids have their corners in the same places, in whatever order."""
    corners = []
    for grid in (first, second):
        places = grid.world(list(product(*[(0, n - 1) for n in grid.shape]))).round(2)
        corners.append(set(map(tuple, places + 0.0)))  # -0.0 becomes 0.0
    return corners[0] == corners[1]


def _moved(image: Volume, labels: Volume, matrix: Float[np.ndarray, "3 3"]) -> Pair:
    """Map every point x of the world to matrix (x - middle) + middle."""
    undone, middle = np.linalg.inv(matrix), _middle(image.grid)
    to_source = from_matvec(undone, middle - undone @ middle)
    # The moved corners, seen along the voxel axes, say how much room is needed.
    half_mm = np.multiply(image.grid.shape, image.grid.spacing) / 2
    corners = np.array(list(product((-1, 1), repeat=3))) * half_mm
    directions = image.grid.directions
    reach_mm = np.abs(corners @ directions.T @ matrix.T @ directions).max(axis=0)
    shape = np.ceil(2 * reach_mm / image.grid.spacing)
    grid = _grid_about(image, image.grid.affine[:3, :3], shape)
    return _on_grid(image, labels, grid, to_source)


def _on_grid(image: Volume, labels: Volume, grid: Grid, to_source: np.ndarray) -> Pair:
    return (
        Volume(resample_to_grid(image, grid, to_source), grid, image.name),
        Volume(resample_to_grid(labels, grid, to_source, "nearest"), grid, labels.name),
    )


def _grid_about(image: Volume, matrix: Float[np.ndarray, "3 3"], shape: np.ndarray) -> Grid:
    """A grid of these voxels, centred where the image is."""
    return Grid(tuple(shape), from_matvec(matrix, _middle(image.grid) - matrix @ ((shape - 1) / 2)))


def _middle(grid: Grid) -> Float[np.ndarray, " 3"]:
    return grid.world((np.array(grid.shape) - 1) / 2)

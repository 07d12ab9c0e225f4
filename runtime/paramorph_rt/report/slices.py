"""The slices that a report shows: a registration cut in three planes, as arrays.

Everything is sampled on one lattice per plane, whose columns run to the right of the screen and
whose rows run down it, in the radiological convention: the patient's right is on the left, anterior
is up in axial slices and on the left in sagittal ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..geometry.resample import resample_to_grid
from ..geometry.spaces import Grid, reoriented, to_sitk
from ..geometry.transform import Affine
from ..images.background import background_of
from ..images.volume import Volume, load_labels, load_volume
from ..steps.foreground import foreground_box, foreground_threshold

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float, Integer

    from ..result import RegistrationResult

    Source = str | Path | Volume

STAGE_TITLES = {
    "fixed": "Fixed",
    "before": "Before",
    "affine": "After affine",
    "after": "After",
}
# Array axes towards left, posterior and inferior: columns and rows of every plane follow them.
_SCREEN = "LPI"
# Name of a plane; its columns, rows and normal as axes of `_SCREEN`; letters at its four edges.
_PLANES = (
    ("axial", (0, 1, 2), ("R", "L", "A", "P")),
    ("coronal", (0, 2, 1), ("R", "L", "S", "I")),
    ("sagittal", (1, 2, 0), ("A", "P", "S", "I")),
)
_MARGIN_MM = 8.0  # around the fixed foreground
_COVERED = 0.86  # of the foreground's extent, from the first to the last slice
_OUTLINE_SIGMA_MM = 1.5
_OUTLINE_LEVEL = 0.6  # of the foreground's median: in T1 brains, rim, ventricles and sulci


@dataclass(frozen=True)
class Window:
    """Intensities shown as black and as white."""

    low: float
    high: float

    def __call__(self, data: np.ndarray) -> np.ndarray:
        """Map `low` to 0 and `high` to 1, and clip."""
        return ((data.astype(np.float32) - self.low) / (self.high - self.low)).clip(0, 1)


@dataclass(frozen=True, eq=False)
class Pair:
    """A registration with its inputs: all that a picture needs."""

    result: RegistrationResult
    moving: Volume
    fixed: Volume
    moving_labels: Volume | None = None
    fixed_labels: Volume | None = None

    @cached_property
    def fixed_window(self) -> Window:
        """Of the fixed image."""
        return window_of(self.fixed)

    @cached_property
    def moving_window(self) -> Window:
        """Of the moving image: the same before, after the affine, and after all."""
        return window_of(self.moving)

    @cached_property
    def jacobian(self) -> Volume:
        """Jacobian determinant of the complete field."""
        found = self.result.displacement
        return Volume(found.jacobian_determinant(), found.grid, "Jacobian determinant")

    @cached_property
    def obliqueness_degrees(self) -> float:
        """Largest angle between a voxel axis of the fixed image and the closest world axis."""
        closest = np.abs(self.fixed.grid.directions).max(axis=0).clip(0, 1)
        return float(np.degrees(np.arccos(closest)).max())


@dataclass(frozen=True, eq=False)
class Plane:
    """Parallel slices of a pair.

    Attributes:
        name: "axial", "coronal" or "sagittal".
        edges: Anatomical letters at the left, right, top and bottom of a slice.
        grid: Array axes (column, row, slice).
        images: 0 to 1 within the window, under "fixed" and each stage of the moving image.
        labels: Label maps, under the same names, as far as they were given.
        outline: The smoothed fixed image over the level at which its contour is drawn, minus 1.
        jacobian: Jacobian determinant of the complete field.
        lattice: Where each voxel lies in the moving image after the affine, in mm along columns
            and along rows; without deformation, mm from the first voxel.
    """

    name: str
    edges: tuple[str, str, str, str]
    grid: Grid
    images: dict[str, Float[np.ndarray, "column row slice"]]
    labels: dict[str, Integer[np.ndarray, "column row slice"]]
    outline: Float[np.ndarray, "column row slice"]
    jacobian: Float[np.ndarray, "column row slice"]
    lattice: Float[np.ndarray, "2 column row slice"]

    @property
    def count(self) -> int:
        """How many slices."""
        return self.grid.shape[2]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Width and height of a slice."""
        columns, rows, _ = self.grid.shape
        return float(columns * self.grid.spacing[0]), float(rows * self.grid.spacing[1])

    def positions(self) -> list[tuple[str, float]]:
        """Where each slice's centre lies in the world, such as ("S", 12.5): mm from the origin."""
        columns, rows, count = self.grid.shape
        index = [((columns - 1) / 2, (rows - 1) / 2, n) for n in range(count)]
        axis = int(np.abs(self.grid.directions[:, 2]).argmax())
        along = self.grid.world(np.array(index))[:, axis]
        return [("LPI"[axis] if mm < 0 else "RAS"[axis], abs(float(mm))) for mm in along]


def load_pair(
    result: RegistrationResult,
    moving: Source,
    fixed: Source,
    moving_labels: Source | None = None,
    fixed_labels: Source | None = None,
) -> Pair:
    """Put a result and its inputs together; paths are read.

    Raises:
        VolumeError: An input cannot be read.
    """
    images = [v if isinstance(v, Volume) else load_volume(v) for v in (moving, fixed)]
    labels = [
        v if v is None or isinstance(v, Volume) else load_labels(v)
        for v in (moving_labels, fixed_labels)
    ]
    return Pair(result, images[0], images[1], labels[0], labels[1])


def cut(pair: Pair, count: int) -> list[Plane]:
    """Cut a pair in three planes, in up to `count` slices each, all through fixed voxels."""
    return [
        _plane(pair, name, edges, grid)
        for (name, _, edges), grid in zip(_PLANES, _grids(pair.fixed, count), strict=True)
    ]


def window_of(volume: Volume) -> Window:
    """From the background to the 99.5th percentile of the foreground."""
    low = background_of(volume.data)
    sample = volume.data[::2, ::2, ::2]
    bright = sample[sample > foreground_threshold(volume.data)]
    high = float(np.percentile(bright, 99.5)) if bright.size else low
    return Window(low, high if high > low else float(volume.data.max()))


def _grids(fixed: Volume, count: int) -> list[Grid]:
    """One grid (column, row, slice) per plane, over the fixed image's foreground."""
    data, grid = reoriented(fixed.data, fixed.grid, _SCREEN)
    lo, hi = (np.array(corner) for corner in foreground_box(Volume(data, grid)))
    margin = np.ceil(_MARGIN_MM / grid.spacing).astype(int)
    shown_lo, shown_hi = np.maximum(lo - margin, 0), np.minimum(hi + margin, grid.shape)
    grids = []
    for _, (column, row, normal), _ in _PLANES:
        extent = int(hi[normal] - lo[normal])
        slices = min(count, extent)
        step = max(1, round(_COVERED * (extent - 1) / max(1, slices - 1)))
        while (slices - 1) * step >= extent:
            step -= 1
        first, stop, steps = shown_lo.copy(), shown_hi.copy(), np.ones(3, int)
        first[normal] = (lo[normal] + hi[normal] - 1 - (slices - 1) * step) // 2
        stop[normal] = first[normal] + (slices - 1) * step + 1
        steps[normal] = step
        box, axes = grid.cropped(first, stop).coarsened(steps), [column, row, normal]
        grids.append(Grid(tuple(box.shape[axis] for axis in axes), box.affine[:, [*axes, 3]]))
    return grids


def _plane(pair: Pair, name: str, edges: tuple[str, str, str, str], grid: Grid) -> Plane:
    result = pair.result
    cut_moving = {
        "before": (pair.moving, None),
        "affine": (pair.moving, result.affine),
        "after": (result.warped, None),
    }
    images = {"fixed": pair.fixed_window(_sample(pair.fixed, grid))}
    for stage, (volume, transform) in cut_moving.items():
        images[stage] = pair.moving_window(_sample(volume, grid, transform))
    label_sources = {
        "fixed": (pair.fixed_labels, None),
        "before": (pair.moving_labels, None),
        "affine": (pair.moving_labels, result.affine),
        "after": (result.warped_labels, None),
    }
    labels = {
        stage: resample_to_grid(volume, grid, transform, "nearest")
        for stage, (volume, transform) in label_sources.items()
        if volume is not None
    }
    return Plane(
        name,
        edges,
        grid,
        images,
        labels,
        outline=_outline(pair.fixed, grid),
        jacobian=_sample(pair.jacobian, grid),
        lattice=_lattice(pair, grid),
    )


def _sample(volume: Volume, grid: Grid, transform: np.ndarray | None = None) -> np.ndarray:
    # Not smoothed: a plane's slices lie far apart, and between them nothing is to be mixed.
    return resample_to_grid(volume, grid, transform, "linear", smooth=False)


def _outline(fixed: Volume, grid: Grid) -> Float[np.ndarray, "column row slice"]:
    data = fixed.data
    low = background_of(data)
    bright = data[data > foreground_threshold(data)]
    level = low + _OUTLINE_LEVEL * (float(np.median(bright)) - low)
    image = to_sitk(_sample(fixed, grid), grid)
    within_slices = [_OUTLINE_SIGMA_MM**2, _OUTLINE_SIGMA_MM**2, 0.0]
    smooth = sitk.GetArrayFromImage(sitk.DiscreteGaussian(image, within_slices)).T
    return (smooth - low) / max(level - low, 1e-30) - 1


def _lattice(pair: Pair, grid: Grid) -> Float[np.ndarray, "2 column row slice"]:
    result = pair.result
    found = result.displacement.resampled_to(grid)
    aligned = Affine(result.affine).inverse().map(grid.positions() + found.vectors_mm)
    from_first = aligned - grid.affine[:3, 3]
    return np.stack([from_first @ grid.directions[:, axis] for axis in (0, 1)])

"""Grids of voxels in the world, and the only place that flips an axis sign.

World coordinates are RAS+ millimetres (nibabel, NIfTI) everywhere in this package; ITK speaks
LPS+, and FSL millimetres along an image's own axes. All conversions between them are here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import from_matvec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Shaped

# Left and posterior are positive in LPS, right and anterior in RAS. Its own inverse.
_FLIP = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxel centres in the world.

    Attributes:
        shape: Voxels along the array axes (i, j, k).
        affine: 4×4 float64, voxel index → world mm, RAS+.
        world_code: Which world, by NIfTI's codes: 1 scanner, 2 another image, 3 Talairach, 4 MNI.
        doubt_mm: How far from here, at most, other readers of the file see a voxel.
    """

    shape: tuple[int, ...]
    affine: Float[np.ndarray, "4 4"]
    world_code: int = 1
    doubt_mm: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))

    @classmethod
    def from_spacing(
        cls,
        shape: Sequence[int] | Float[np.ndarray, " 3"],
        spacing_mm: Sequence[float] | Float[np.ndarray, " 3"] | float,
        directions: Float[np.ndarray, "3 3"],
        *,
        origin: Float[np.ndarray, " 3"] | None = None,
        centre: Float[np.ndarray, " 3"] | None = None,
    ) -> Grid:
        """A grid by its spacing, and by where its first voxel or its middle is.

        Args:
            shape: Voxels along the array axes.
            spacing_mm: Between voxel centres along each array axis.
            directions: Column c is the unit vector (RAS) along array axis c.
            origin: World mm (RAS) of the first voxel's centre.
            centre: World mm (RAS) of the middle of all voxels, in place of `origin`.
        """
        matrix = directions * np.asarray(spacing_mm)
        if origin is None:
            origin = centre - matrix @ (np.subtract(shape, 1) / 2)
        return cls(tuple(shape), from_matvec(matrix, origin))

    def __repr__(self) -> str:
        shape = " × ".join(map(str, self.shape))
        spacing = " × ".join(f"{mm:.4g}" for mm in self.spacing)
        origin = ", ".join(f"{mm:.4g}" for mm in self.affine[:3, 3])
        return f"Grid({shape} voxels of {spacing} mm, {self.orientation}, origin ({origin}) mm)"

    @cached_property
    def world_to_index(self) -> Float[np.ndarray, "4 4"]:
        """World mm (RAS) → voxel index, the inverse of `affine`."""
        return np.linalg.inv(self.affine)

    @cached_property
    def spacing(self) -> Float[np.ndarray, " 3"]:
        """Millimetres between voxel centres along each array axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @cached_property
    def directions(self) -> Float[np.ndarray, "3 3"]:
        """Column c is the unit vector (RAS) along array axis c."""
        return self.affine[:3, :3] / self.spacing

    @property
    def orientation(self) -> str:
        """Where each array axis points, to the closest anatomical direction, such as "LAS"."""
        return "".join(nib.aff2axcodes(self.affine))

    def world(self, index: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Map voxel indices to world mm (RAS)."""
        return np.asarray(index, dtype=np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, points_mm: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Map world mm (RAS) to voxel indices, integers at voxel centres."""
        points_mm = np.asarray(points_mm, dtype=np.float64)
        return points_mm @ self.world_to_index[:3, :3].T + self.world_to_index[:3, 3]

    def positions(self) -> Float[np.ndarray, "i j k 3"]:
        """World mm (RAS) of every voxel."""
        return self.world(np.moveaxis(np.indices(self.shape, dtype=np.float64), 0, -1))

    def with_shape(self, shape: Sequence[int]) -> Grid:
        """The same field of view, cut into another number of voxels."""
        sizes = np.divide(self.shape, shape)  # of a new voxel, in old ones
        affine = self.affine.copy()
        affine[:3, :3] *= sizes
        affine[:3, 3] = self.world((sizes - 1) / 2)
        return Grid(tuple(shape), affine, self.world_code)

    def cropped(
        self,
        first: Sequence[int] | Float[np.ndarray, " 3"],
        stop: Sequence[int] | Float[np.ndarray, " 3"],
    ) -> Grid:
        """The voxels from `first` to one before `stop` on each axis, which may lie outside."""
        affine = from_matvec(self.affine[:3, :3], self.world(np.asarray(first)))
        return Grid(tuple(np.subtract(stop, first)), affine, self.world_code)

    def padded(
        self, before: Sequence[int] | np.ndarray, after: Sequence[int] | np.ndarray | None = None
    ) -> Grid:
        """More voxels before each axis, and after it; as many as before where that is None."""
        after = before if after is None else after
        return self.cropped(np.negative(before), np.add(self.shape, after))

    def coarsened(self, steps: Sequence[int] | np.ndarray | int) -> Grid:
        """Every so many voxels along each axis, starting from the first one."""
        matrix = self.affine[:3, :3] * np.asarray(steps)
        shape = -(-np.array(self.shape) // steps)
        return Grid(tuple(shape), from_matvec(matrix, self.affine[:3, 3]), self.world_code)

    def matches(self, other: Grid, tolerance_mm: float = 1e-2) -> bool:
        """Whether both grids have the same voxels at the same positions.

        The corners are compared, so the tolerance means the same for every field of view. Its
        default allows for the float32 headers of NIfTI, which round differently in each program.
        """
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0, n - 1) for n in self.shape]), axis=-1)
        return bool(np.abs(self.world(corners) - other.world(corners)).max() <= tolerance_mm)


def network_grid(
    fixed: Grid,
    box_lo: Sequence[int],
    box_hi: Sequence[int],
    shapes: Sequence[tuple[int, int, int]],
    spacing_mm: Sequence[float],
    orientation: str,
) -> Grid:
    """Place the grid on which the network runs over a box of the fixed image.

    Its axes are the fixed image's own, permuted and flipped to come closest to `orientation`, so
    an oblique image stays as the scanner cut it. It is centred on the box. If the box is larger
    than shape × spacing, the spacing of all axes grows by one common factor until the box fits. Of
    several shapes, the one whose spacing grows least is taken, and of those the smallest.

    Args:
        fixed: Grid of the fixed image.
        box_lo: First voxel of the box in `fixed`.
        box_hi: One past the last voxel of the box.
        shapes: Voxels that the result may have.
        spacing_mm: Spacing of the result, unless it must grow.
        orientation: Closest anatomical directions of the result's axes, such as "RAS".
    """
    steps = nib.orientations.ornt_transform(
        nib.io_orientation(fixed.affine), nib.orientations.axcodes2ornt(orientation)
    )
    source = np.argsort(steps[:, 0])  # source[axis of the result] = axis of `fixed`
    directions = (fixed.directions * steps[:, 1])[:, source]

    extent_mm = (np.subtract(box_hi, box_lo) * fixed.spacing)[source]

    def growth_of(shape: tuple[int, int, int]) -> float:
        return max(1.0, float((extent_mm / np.multiply(shape, spacing_mm)).max()))

    shape = min(shapes, key=lambda shape: (growth_of(shape), math.prod(shape)))

    centre = fixed.world(np.add(box_lo, box_hi) / 2 - 0.5)
    return Grid.from_spacing(
        shape, np.multiply(spacing_mm, growth_of(shape)), directions, centre=centre
    )


def reoriented(
    data: Shaped[np.ndarray, "i j k"], grid: Grid, orientation: str
) -> tuple[Shaped[np.ndarray, "a b c"], Grid]:
    """Permute and flip array axes until they come closest to anatomical directions.

    No voxel moves in the world, and none changes: an oblique image stays oblique.

    Args:
        data: On `grid`.
        grid: Where the voxels are.
        orientation: Closest anatomical directions of the result's axes, such as "RAS".

    Returns:
        A view of `data`, and the grid on which it lies.
    """
    steps = nib.orientations.ornt_transform(
        nib.io_orientation(grid.affine), nib.orientations.axcodes2ornt(orientation)
    )
    turned = nib.orientations.apply_orientation(data, steps)
    affine = grid.affine @ nib.orientations.inv_ornt_aff(steps, grid.shape)
    return turned, Grid(turned.shape, affine)


def flip_vectors(vectors: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
    """Turn RAS vectors or points into LPS, or LPS into RAS; the dtype stays."""
    return vectors * np.diag(_FLIP).astype(vectors.dtype)


def flip_affine(transform: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """Turn a world → world transform between RAS worlds into LPS worlds, or back."""
    flip = from_matvec(_FLIP)
    return flip @ transform @ flip


def itk_affine(transform: Float[np.ndarray, "4 4"]) -> sitk.AffineTransform:
    """Express a RAS world → world transform as an ITK (LPS) transform centred on the origin."""
    lps = flip_affine(transform)
    result = sitk.AffineTransform(3)
    result.SetMatrix(lps[:3, :3].ravel().tolist())
    result.SetTranslation(lps[:3, 3].tolist())
    return result


def affine_from_itk(transform: sitk.Transform) -> Float[np.ndarray, "4 4"]:
    """Read the RAS world → world matrix off a linear ITK transform, whatever its kind."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - origin for axis in np.eye(3)]
    return flip_affine(from_matvec(np.stack(columns, axis=1), origin))


def fsl_from_world(grid: Grid) -> Float[np.ndarray, "4 4"]:
    """World mm (RAS) → FSL's coordinates of an image.

    They are voxel indices × spacing, and the first axis runs backwards unless the affine is
    left-handed (FSL calls that radiological).
    """
    scaled = np.diag([*grid.spacing, 1.0])
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        scaled[0] = (-grid.spacing[0], 0.0, 0.0, (grid.shape[0] - 1) * grid.spacing[0])
    return scaled @ grid.world_to_index


def place(image: sitk.Image | sitk.ImageFilter, grid: Grid) -> None:
    """Give an ITK image, or a resampling filter's output, the geometry of `grid`."""
    origin, direction = flip_vectors(grid.affine[:3, 3]), _FLIP @ grid.directions
    for name, value in (
        ("Origin", origin),
        ("Spacing", grid.spacing),
        ("Direction", direction.ravel()),
    ):
        # Images say SetOrigin, resampling filters SetOutputOrigin.
        setter = getattr(image, f"Set{name}", None) or getattr(image, f"SetOutput{name}")
        setter(value.tolist())


def to_sitk(array: Shaped[np.ndarray, "i j k *component"], grid: Grid) -> sitk.Image:
    """Copy an array into an ITK image that lies where `grid` says.

    Args:
        array: A scalar volume (i, j, k), or RAS vectors in mm (i, j, k, 3), which become LPS.
        grid: Where the voxels are.
    """
    if array.ndim == 4:
        swapped = flip_vectors(array).transpose(2, 1, 0, 3)
        image = sitk.GetImageFromArray(np.ascontiguousarray(swapped), isVector=True)
    else:
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    place(image, grid)
    return image


def grid_of_sitk(image: sitk.Image | sitk.ImageFileReader) -> Grid:
    """The grid of an ITK image, or of a file whose header was read."""
    directions = _FLIP @ np.array(image.GetDirection()).reshape(3, 3)
    origin = flip_vectors(np.array(image.GetOrigin()))
    return Grid.from_spacing(image.GetSize(), image.GetSpacing(), directions, origin=origin)


def from_sitk(image: sitk.Image) -> tuple[Shaped[np.ndarray, "i j k *component"], Grid]:
    """Copy an ITK image into an array and its grid; LPS vectors become RAS."""
    grid = grid_of_sitk(image)
    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 3:
        return flip_vectors(array.transpose(2, 1, 0, 3)), grid
    return array.T, grid

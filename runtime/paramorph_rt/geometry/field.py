"""A displacement field on a grid: from network output to millimetres, to other grids, composed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import TransformError
from ..system.threads import mapped
from .resample import resampled
from .separable import interpolate, samples_along_axes
from .spaces import Grid, from_sitk, to_sitk

if TYPE_CHECKING:
    from jaxtyping import Float


SLAB = 16  # slices at a time


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """Where in the moving image each voxel of the fixed one is sampled (a pull-back).

    ``x_moving = x + vectors_mm[p]`` with x the world position of voxel p of `grid`; zeros are the
    identity.

    Attributes:
        grid: Grid of the fixed side.
        vectors_mm: RAS+ millimetres, one vector per voxel.
    """

    grid: Grid
    vectors_mm: Float[np.ndarray, "i j k 3"]

    def __post_init__(self) -> None:
        assert self.vectors_mm.shape == (*self.grid.shape, 3), self.vectors_mm.shape

    def map(self, points_mm: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Map points of the fixed world, interpolating the vectors linearly.

        Args:
            points_mm: World mm (RAS).

        Returns:
            World mm (RAS) in the moving image; NaN for points outside the grid's outer voxels.
        """
        index, last = self.grid.index(points_mm), np.array(self.grid.shape) - 1
        inside = np.logical_and(index >= -0.5, index <= last + 0.5).all(axis=-1, keepdims=True)
        index = np.where(inside, index, 0.0).clip(0, last)
        lower = np.floor(index).astype(int)
        share = index - lower
        displacement = np.where(inside, np.zeros(3), np.nan)
        for corner in product((0, 1), repeat=3):
            voxel = np.moveaxis(np.minimum(lower + corner, last), -1, 0)
            weight = np.where(corner, share, 1 - share).prod(axis=-1, keepdims=True)
            displacement += weight * self.vectors_mm[tuple(voxel)]
        return points_mm + displacement

    def to_itk(self) -> sitk.Transform:
        """For ITK, which moves nothing beyond the grid."""
        vectors = self.vectors_mm.astype(np.float64)
        return sitk.DisplacementFieldTransform(to_sitk(vectors, self.grid))

    def resampled_to(self, grid: Grid) -> DisplacementField:
        """Interpolate the vectors linearly at the voxels of another grid.

        Outside its own grid the field goes on with its border values, so nothing jumps.
        """
        samples = samples_along_axes(self.grid, grid)
        if samples is None:
            return self._resampled_by_itk(grid)
        vectors = np.empty((*grid.shape, 3), np.float32, order="F")

        def fill(c: int) -> None:
            component = self.vectors_mm[..., c].astype(np.float32, copy=False)
            interpolate(component, samples, vectors[..., c])

        mapped(fill, range(3))
        return DisplacementField(grid, vectors)

    def _resampled_by_itk(self, grid: Grid) -> DisplacementField:
        """The same whatever the two grids are."""
        extended = self.extended_over(grid)
        image = to_sitk(extended.vectors_mm, extended.grid)
        return DisplacementField(grid, from_sitk(resampled(image, grid))[0])

    def extended_over(self, grid: Grid, margin_mm: float = 0.0) -> DisplacementField:
        """The field on its own grid, grown by border values until it covers another grid.

        Args:
            grid: What to cover.
            margin_mm: How far beyond it to go.
        """
        before, after = self._reach(grid, margin_mm)
        padded = np.pad(self.vectors_mm, [*zip(before, after, strict=True), (0, 0)], mode="edge")
        return DisplacementField(self.grid.padded(before, after), padded)

    def check(self, name: str) -> None:
        """Refuse vectors or a grid that are not finite.

        Raises:
            TransformError: NaN or infinity; `name` is what the message calls the field.
        """
        if not (np.isfinite(self.vectors_mm).all() and np.isfinite(self.grid.affine).all()):
            raise TransformError(
                f"{name}: expected finite vectors on a grid, got NaN or Inf; write it again."
            )

    # NumPy leaves `affine @ field` to the field.
    __array_ufunc__ = None

    def __rmatmul__(self, affine: Float[np.ndarray, "4 4"]) -> DisplacementField:
        """``affine @ field``: the displacement of ``x ↦ affine(x + u(x))``.

        Args:
            affine: World mm → moving world mm (RAS), such as `align_affine` returns.
        """
        matrix, offset = np.asarray(affine)[:3, :3], np.asarray(affine)[:3, 3]
        # affine(x + u) - x = (matrix - 1) x + offset + matrix u. With x = grid(p), the first two
        # terms are linear in p: a sum of three vectors, one per axis, that broadcasting spreads.
        slope = (matrix - np.eye(3)) @ self.grid.affine[:3, :3]
        start = (matrix - np.eye(3)) @ self.grid.affine[:3, 3] + offset
        axes = np.ix_(*[np.arange(n, dtype=np.float64) for n in self.grid.shape])
        composed = np.empty_like(self.vectors_mm)
        for c in range(3):
            along = [slope[c, a] * axes[a] for a in range(3)]
            along[0] = along[0] + start[c]
            composed[..., c] = along[0]
            for term in along[1:]:  # in place, and so in the order of memory
                composed[..., c] += term.astype(np.float32)
            for b in range(3):
                composed[..., c] += np.float32(matrix[c, b]) * self.vectors_mm[..., b]
        return DisplacementField(self.grid, composed)

    def jacobian_determinant(self) -> Float[np.ndarray, "i j k"]:
        """Volume change of ``x ↦ x + u(x)`` in world units, by central differences.

        1 keeps volume, below 0 is folded. The border uses one-sided differences.
        """
        depth = self.grid.shape[2]
        determinant = np.empty(self.grid.shape, dtype=np.float32, order="F")

        def fill(start: int) -> None:
            stop = min(start + SLAB, depth)
            lo, hi = max(start - 1, 0), min(stop + 1, depth)  # neighbours, for the differences
            slab = _determinant(self.vectors_mm[:, :, lo:hi], self.grid.affine[:3, :3])
            determinant[:, :, start:stop] = slab[:, :, start - lo : stop - lo]

        # In slabs that fit the cache: faster, and a large image needs no nine gradients at once.
        mapped(fill, range(0, depth, SLAB))
        return determinant

    def _reach(self, grid: Grid, margin_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """How many voxels this grid lacks before and after each axis to cover another grid."""
        corners = np.array(list(product(*[(0, n - 1) for n in grid.shape])))
        index = self.grid.index(grid.world(corners))
        margin = margin_mm / self.grid.spacing
        before = np.ceil(np.maximum(0, margin - index.min(axis=0)))
        after = np.ceil(np.maximum(0, margin + index.max(axis=0) - np.array(self.grid.shape) + 1))
        return before.astype(int), after.astype(int)


def field_from_network(
    displacement_vox: Float[np.ndarray, "3 i j k"], grid: Grid, sampling: str = "exact"
) -> DisplacementField:
    """Turn the network's output into a field in millimetres on the network grid.

    Args:
        displacement_vox: In voxels of `grid`; channel c moves along array axis c.
        grid: The grid on which the network ran.
        sampling: The bundle's convention. "exact": ``warped[p] = moving[p + u[p]]``. "reference":
            the weights were trained with a sampler that normalises coordinates for
            align_corners=True and reads them with align_corners=False, and so really samples at
            ``(p + u) n / (n - 1) - 0.5`` along an axis of n voxels; the result says so.
    """
    vectors_vox = np.asarray(displacement_vox, dtype=np.float32)
    if sampling == "reference":
        vectors_vox = np.stack([_as_sampled(vectors_vox[c], axis=c) for c in range(3)])
    matrix = grid.affine[:3, :3].astype(np.float32)
    vectors_mm = np.tensordot(matrix, vectors_vox, axes=1)
    return DisplacementField(grid, np.moveaxis(vectors_mm, 0, -1))


def _determinant(
    vectors_mm: Float[np.ndarray, "i j k 3"], matrix: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "i j k"]:
    """det of d(x + u)/dx = (G + du/dp) G⁻¹, with p the voxel index and G the grid's matrix."""
    rows = []
    for c in range(3):
        slopes = np.gradient(np.ascontiguousarray(vectors_mm[..., c], dtype=np.float32))
        rows.append([slope + np.float32(matrix[c, a]) for a, slope in enumerate(slopes)])
    (a, b, c), (d, e, f), (g, h, i) = rows
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    return determinant / np.float32(np.linalg.det(matrix))


def _as_sampled(component_vox: Float[np.ndarray, "i j k"], axis: int) -> np.ndarray:
    n = component_vox.shape[axis]
    index = np.arange(n, dtype=np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return (index + component_vox) * np.float32(n / (n - 1)) - np.float32(0.5) - index

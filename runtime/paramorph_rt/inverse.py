"""The inverse of a displacement field, and how far it is from being one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import SimpleITK as sitk

from .errors import TransformError
from .field import DisplacementField
from .preprocess import foreground_threshold
from .spaces import Grid, from_sitk, to_sitk

if TYPE_CHECKING:
    from jaxtyping import Float

    from .volume import Volume

TOLERANCE_MM = 0.01
COARSE_ITERATIONS, FINE_ITERATIONS = 24, 6


class Inverse(NamedTuple):
    """An inverse and its error.

    Attributes:
        field: Moving → fixed, on a grid of the moving side.
        error_mm: Length of ``field_given(field(y)) - y`` at each voxel y. It stays large where the
            given field folds, as there is no inverse, and says nothing at voxels that come from
            outside the given field's grid, where that field goes on with its border values.
    """

    field: DisplacementField
    error_mm: Float[np.ndarray, "i j k"]


def invert_field(field: DisplacementField, grid: Grid) -> Inverse:
    """Find where each point of the moving side is found in the fixed one.

    The best affine part of the field is inverted exactly, the rest by fixed-point iteration: from
    ``y = A(x + w(x))`` follows ``x = A⁻¹ y - w(x)``, with a shorter step wherever a full one did
    not come closer. Most iterations run at every second voxel, the last few at all.

    Args:
        field: Fixed → moving; folds have no inverse.
        grid: Where to find the inverse, usually the moving image's grid.

    Raises:
        TransformError: The field's best affine is singular.

    Source:
        Chen et al., A simple fixed-point approach to invert a deformation field (2008).
    """
    affine = _best_affine(field)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise TransformError(
            "field: expected one that has an inverse, got one that maps everything into a plane; "
            "check that it is the right file."
        )
    solver = _Solver(field, affine, grid)
    every_second = _every_second_voxel(grid)
    start = DisplacementField(every_second, np.zeros((*every_second.shape, 3), np.float32))
    coarse, _ = solver.iterate(start, COARSE_ITERATIONS)
    rest, error_mm = solver.iterate(coarse.resampled_to(grid), FINE_ITERATIONS)
    return Inverse(solver.completed(rest), error_mm)


def consistency_mm(inverse: Inverse, moving: Volume, fixed: Grid) -> dict[str, float] | None:
    """How far a point of the moving foreground comes back from itself, there and back, in mm.

    Args:
        inverse: On the grid of `moving`.
        moving: Image whose foreground counts.
        fixed: Grid of the field that was inverted; voxels that come from outside do not count.

    Returns:
        "mean", "p99" (99th percentile) and "max"; None if no voxel counts.
    """
    index = np.argwhere(moving.data > foreground_threshold(moving.data))
    voxels = tuple(index.T)
    points = moving.grid.world(index) + inverse.field.vectors_mm[voxels]
    to_index = np.linalg.inv(fixed.affine)
    landed = points @ to_index[:3, :3].T + to_index[:3, 3]
    inside = ((landed >= 0) & (landed <= np.array(fixed.shape) - 1)).all(axis=1)
    error = inverse.error_mm[voxels][inside]
    if not error.size:
        return None
    p99, highest = np.percentile(error, [99, 100])
    return {"mean": float(error.mean()), "p99": float(p99), "max": float(highest)}


class _Solver:
    """Finds v with ``v = -w(A⁻¹ y + v)``, so that ``x = A⁻¹ y + v``."""

    def __init__(
        self, field: DisplacementField, affine: Float[np.ndarray, "4 4"], grid: Grid
    ) -> None:
        self.matrix = affine[:3, :3].astype(np.float32)
        self.inverse_affine = np.linalg.inv(affine)
        rest = field.composed_with_affine(self.inverse_affine)
        # Where A⁻¹ puts the grid, and as far beyond as w can reach.
        aligned = Grid(grid.shape, self.inverse_affine @ grid.affine)
        rest = rest.extended_over(aligned, float(np.abs(rest.vectors_mm).max()))
        self.rest = to_sitk(rest.vectors_mm, rest.grid)

    def iterate(
        self, start: DisplacementField, iterations: int
    ) -> tuple[DisplacementField, Float[np.ndarray, "i j k"]]:
        """Improve v; returns it with ``|y - A(x + w(x))|`` in mm."""
        grid = start.grid
        zeros = DisplacementField(grid, np.zeros_like(start.vectors_mm))
        to_target = self.completed(zeros).vectors_mm  # A⁻¹ y - y
        best, trial = start.vectors_mm, start.vectors_mm
        best_missing = np.zeros_like(best)
        best_error = np.full(grid.shape, np.inf, np.float32)
        length = np.ones(grid.shape, np.float32)
        for _ in range(iterations):
            missing = -self._sampled(DisplacementField(grid, to_target + trial)) - trial
            error = np.linalg.norm(missing @ self.matrix.T, axis=-1)
            better = error < best_error
            best = np.where(better[..., np.newaxis], trial, best)
            best_missing = np.where(better[..., np.newaxis], missing, best_missing)
            best_error = np.where(better, error, best_error)
            if best_error.max() < TOLERANCE_MM:
                break
            # Where w more than doubles distances, the full step overshoots.
            length = np.where(better, np.minimum(1, 1.5 * length), length / 2)
            trial = best + length[..., np.newaxis] * best_missing
        return DisplacementField(grid, best), best_error

    def completed(self, rest: DisplacementField) -> DisplacementField:
        """The displacement ``A⁻¹ y + v - y``."""
        moved = DisplacementField(rest.grid, rest.vectors_mm @ self.matrix.T)
        return moved.composed_with_affine(self.inverse_affine)

    def _sampled(self, displacement: DisplacementField) -> Float[np.ndarray, "i j k 3"]:
        image = to_sitk(displacement.vectors_mm, displacement.grid)
        sampled = sitk.Warp(
            self.rest,
            image,
            interpolator=sitk.sitkLinear,
            outputSize=image.GetSize(),
            outputOrigin=image.GetOrigin(),
            outputSpacing=image.GetSpacing(),
            outputDirection=image.GetDirection(),
        )
        return from_sitk(sampled)[0]


def _best_affine(field: DisplacementField) -> Float[np.ndarray, "4 4"]:
    """The affine closest to ``x ↦ x + u(x)`` in the least squares of the grid's voxels."""
    steps = tuple(slice(None, None, max(1, n // 24)) for n in field.grid.shape)
    x = field.grid.positions()[steps].reshape(-1, 3)
    u = field.vectors_mm[steps].reshape(-1, 3).astype(np.float64)
    centre = x.mean(axis=0)  # keeps the equations well conditioned far from the origin
    design = np.column_stack([x - centre, np.ones(len(x))])
    solution = np.linalg.lstsq(design, u, rcond=None)[0]
    affine = np.eye(4)
    affine[:3, :3] += solution[:3].T
    affine[:3, 3] = solution[3] - solution[:3].T @ centre
    return affine


def _every_second_voxel(grid: Grid) -> Grid:
    affine = grid.affine.copy()
    affine[:3, :3] *= 2
    return Grid(tuple((n + 1) // 2 for n in grid.shape), affine)

"""The inverse of a displacement field, and its error."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from nibabel.affines import from_matvec

from ..errors import TransformError
from ..system.threads import mapped
from .field import DisplacementField
from .interpolation import (
    CHUNK,
    Table,
    components_of,
    lengths,
    point_matrix,
    rows_of,
    rows_of_indices,
    vector_matrix,
)
from .spaces import Grid

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


# Far below what interpolating the inverse costs.
TOLERANCE_MM = 0.02
COARSE_STEPS, FINE_STEPS = 12, 8
# The first start is computed at every so many voxels.
_COARSE = 3
# A step is at most so many voxels of the field: beyond, its slopes say nothing.
_LONGEST = 4.0
# Of a step; less is no way out.
_SHORTEST = 1e-3
# Of the field's slopes: where less volume is left, or it is turned inside out, a Newton step would
# lead anywhere.
_LEAST_DETERMINANT = 0.1


class Inverse(NamedTuple):
    """An inverse and its error.

    Attributes:
        field: Moving → fixed, on a grid of the moving side.
        error_mm: Length of ``field_given(field(y)) - y`` at each voxel y. It stays large where the
            given field folds, as there is no inverse, and says nothing where not `inside`.
        inside: Voxels that come from within the given field's grid; outside, that field goes on
            with its border values.
    """

    field: DisplacementField
    error_mm: Float[np.ndarray, "i j k"]
    inside: Bool[np.ndarray, "i j k"]


def invert_field(field: DisplacementField, grid: Grid) -> Inverse:
    """Invert a displacement field.

    Newton's method at each voxel, with the exact slopes of the linearly interpolated field, from a
    start that is computed in the same way at every third voxel. Where the field folds, or a step
    leads further away, shorter steps are taken, along the residual itself if need be.

    Args:
        field: Fixed → moving; folds have no inverse.
        grid: Of the inverse, usually the moving image's grid.

    Raises:
        TransformError: The field's best affine is singular.
    """
    affine = _best_affine(field)
    if abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise TransformError(
            "field: expected one that has an inverse, got one that maps everything into a plane; "
            "check that it is the right file."
        )
    solver = _Solver(field, affine)
    start = solver.solve(grid.coarsened(_COARSE), None, COARSE_STEPS).field
    return solver.solve(grid, start.resampled_to(grid), FINE_STEPS)


class _Solver:
    """Solves ``p + w(p) = q`` in voxels of the field's grid.

    A point p of that grid goes to ``affine(p + w(p))``, so that q is ``affine⁻¹(y)``.
    """

    def __init__(self, field: DisplacementField, affine: Float[np.ndarray, "4 4"]) -> None:
        self._grid = field.grid
        self._to_moving = affine @ field.grid.affine
        rest = (np.linalg.inv(affine) @ field).vectors_mm
        turn = field.grid.world_to_index[:3, :3].astype(np.float32)
        in_voxels = np.empty(rest.shape, np.float32, order="F")
        for a in range(3):
            in_voxels[..., a] = sum(turn[a, b] * rest[..., b] for b in range(3))
        self._table = Table(in_voxels)
        self._mm = vector_matrix(self._to_moving)

    def solve(self, grid: Grid, start: DisplacementField | None, steps: int) -> Inverse:
        """Solve for p at the voxels of a grid of the moving side.

        Args:
            grid: Its voxels are y.
            start: An inverse to start from, on `grid`; None is that of the affine.
            steps: So many at most.
        """
        vectors_mm = np.empty((*grid.shape, 3), np.float32, order="F")
        error_mm = np.empty(grid.shape, np.float32, order="F")
        inside = np.empty(grid.shape, bool, order="F")
        vectors = components_of(vectors_mm)
        errors, insides = error_mm.ravel(order="F"), inside.ravel(order="F")
        starts = start and components_of(start.vectors_mm)
        to_q = point_matrix(np.linalg.inv(self._to_moving) @ grid.affine)
        to_start = point_matrix(self._grid.world_to_index @ grid.affine)
        turn = vector_matrix(self._grid.world_to_index)
        to_vectors, minus_y = vector_matrix(self._grid.affine), point_matrix(-grid.affine)
        minus_y[3, :3] += self._grid.affine[:3, 3]

        def fill(first: int) -> None:
            part = slice(first, min(first + CHUNK, len(errors)))
            voxels = rows_of_indices(np.arange(part.start, part.stop), grid.shape)
            q = voxels @ to_q
            p = q.copy()
            if starts:
                p = voxels @ to_start + rows_of([vector[part] for vector in starts]) @ turn
            p, errors[part] = self._newton(q, p, steps)
            insides[part] = self._table.covers(p)
            displacement = p @ to_vectors + voxels @ minus_y
            for c in range(3):
                vectors[c][part] = displacement[:, c]

        mapped(fill, range(0, len(errors), CHUNK))
        return Inverse(DisplacementField(grid, vectors_mm), error_mm, inside)

    def _newton(
        self, q: Float[np.ndarray, "n 4"], start: Float[np.ndarray, "n 4"], steps: int
    ) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, " n"]]:
        """The best p for each q, into `start`, and its error in mm."""
        best, slopes, missing, error = start, *self._missing(q, start)
        going = np.flatnonzero(error > TOLERANCE_MM)  # to which all below belongs
        direction = _newton_step([slope.take(going, 0) for slope in slopes], missing.take(going, 0))
        length = np.ones(len(going), np.float32)
        for _ in range(steps):
            if not going.size:
                break
            p = best.take(going, 0) + length[:, np.newaxis] * direction
            slopes, missing, now = self._missing(q.take(going, 0), p)
            better = now < error.take(going)
            won = going[better]
            best[won], error[won] = p[better], now[better]
            length = np.where(better, np.minimum(1, 2 * length), length / 4)
            on = np.flatnonzero((error.take(going) > TOLERANCE_MM) & (length > _SHORTEST))
            fresh = _newton_step([slope.take(on, 0) for slope in slopes], missing.take(on, 0))
            direction = np.where(better[on, np.newaxis], fresh, direction.take(on, 0))
            going, length = going[on], length[on]
        return best, error

    def _missing(
        self, q: Float[np.ndarray, "n 4"], p: Float[np.ndarray, "n 4"]
    ) -> tuple[tuple[Float[np.ndarray, "n 4"], ...], np.ndarray, np.ndarray]:
        """Slopes of w at p, what p lacks to solve, and the length of that in mm."""
        values, slopes = self._table.at(p)
        missing = q - p
        missing -= values
        return slopes, missing, lengths(missing @ self._mm)


def _newton_step(
    slopes: list[Float[np.ndarray, "n 4"]], missing: Float[np.ndarray, "n 4"]
) -> Float[np.ndarray, "n 4"]:
    """Solve ``(1 + slopes) step = missing`` by Cramer's rule; not longer than `_LONGEST`."""
    (a, b, c) = (
        [slope[:, n] + np.float32(n == axis) for n in range(3)] for axis, slope in enumerate(slopes)
    )
    r = [missing[:, n] for n in range(3)]
    b_c, r_a = _cross(b, c), _cross(r, a)
    determinant = _dot(a, b_c)
    step = missing.copy()
    usable = determinant > _LEAST_DETERMINANT
    for n, numerator in enumerate((_dot(r, b_c), -_dot(c, r_a), _dot(b, r_a))):
        np.divide(numerator, determinant, out=step[:, n], where=usable)
    step *= np.minimum(1, _LONGEST / np.maximum(lengths(step), _LONGEST))[:, np.newaxis]
    return step


def _cross(a: list[np.ndarray], b: list[np.ndarray]) -> list[np.ndarray]:
    return [a[n - 2] * b[n - 1] - a[n - 1] * b[n - 2] for n in range(3)]


def _dot(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _best_affine(field: DisplacementField) -> Float[np.ndarray, "4 4"]:
    """The affine closest to ``x ↦ x + u(x)`` in the least squares of the grid's voxels."""
    steps = tuple(slice(None, None, max(1, n // 24)) for n in field.grid.shape)
    index = np.stack(
        np.meshgrid(
            *(np.arange(n)[s] for n, s in zip(field.grid.shape, steps, strict=True)), indexing="ij"
        ),
        axis=-1,
    )
    x = field.grid.world(index).reshape(-1, 3)
    u = field.vectors_mm[steps].reshape(-1, 3).astype(np.float64)
    centre = x.mean(axis=0)  # keeps the equations well conditioned far from the origin
    design = np.column_stack([x - centre, np.ones(len(x))])
    solution = np.linalg.lstsq(design, u, rcond=None)[0]
    return from_matvec(np.eye(3) + solution[:3].T, solution[3] - solution[:3].T @ centre)

"""The inverse of a displacement field, and how far the two are from undoing each other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from nibabel.affines import from_matvec

from ..errors import TransformError
from ..steps.foreground import foreground_threshold
from ..system.threads import mapped
from .field import DisplacementField
from .resample import resample_to_grid
from .spaces import Grid

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ..images.volume import Volume

# Far below what interpolating the inverse costs.
TOLERANCE_MM = 0.02
COARSE_STEPS, FINE_STEPS = 12, 8
# Where the first start is found: at every so many voxels.
_COARSE = 3
# Points at a time, whose neighbours and slopes stay in the cache.
_CHUNK = 8192
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
    """Find where each point of the moving side is found in the fixed one.

    Newton's method at each voxel, with the exact slopes of the linearly interpolated field, from a
    start that is found in the same way at every third voxel. Where the field folds, or a step
    leads further away, shorter steps are taken, along the residual itself if need be.

    Args:
        field: Fixed → moving; folds have no inverse.
        grid: Where to find the inverse, usually the moving image's grid.

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


def consistency_mm(
    inverse: Inverse, field: DisplacementField, moving: Volume, fixed: Volume | None = None
) -> dict[str, dict[str, float] | None]:
    """How far a point of either foreground comes back from itself, there and back, in mm.

    The inverse is interpolated linearly, as whoever applies it does. Points that leave the other
    grid on their way do not count.

    Args:
        inverse: Of `field`, on the grid of `moving`.
        field: Fixed → moving.
        moving: Image whose foreground counts for "from_moving": to fixed and back.
        fixed: The same for "from_fixed", to moving and back; None leaves that out.

    Returns:
        For either way "mean", "p99" (99th percentile) and "max"; None if no voxel counts.
    """
    ways = {"from_moving": _summary(inverse.error_mm[_foreground(moving) & inverse.inside])}
    if fixed is not None:
        if not fixed.grid.matches(field.grid):
            fixed = replace(fixed, data=resample_to_grid(fixed, field.grid), grid=field.grid)
        ways["from_fixed"] = _summary(_error_of_fixed(inverse.field, field, _foreground(fixed)))
    return ways


def _error_of_fixed(
    inverse: DisplacementField, field: DisplacementField, counting: Bool[np.ndarray, "i j k"]
) -> Float[np.ndarray, " n"]:
    """``|x + field(x) + inverse(x + field(x)) - x|`` at the voxels x that count."""
    table = _Table(inverse.vectors_mm)
    to_inverse = inverse.grid.world_to_index
    to_index, turn = _of_points(to_inverse @ field.grid.affine), _of_vectors(to_inverse)
    voxels = np.flatnonzero(counting.ravel(order="F"))
    vectors = _components(field.vectors_mm)

    def of(start: int) -> Float[np.ndarray, " n"]:
        part = voxels[start : start + _CHUNK]
        moved = _rows([vector[part] for vector in vectors])
        index = _indices(part, field.grid.shape) @ to_index + moved @ turn
        inside = table.covers(index)
        return _length(moved[inside] + table.at(index[inside]).values)

    parts = mapped(of, range(0, len(voxels), _CHUNK))
    return np.concatenate([np.empty(0, np.float32), *parts])


class _Samples(NamedTuple):
    """A field at n points, each with an unused fourth component.

    Attributes:
        values: Its vectors.
        slopes: How they change with the index along each of the three axes.
    """

    values: Float[np.ndarray, "n 4"]
    slopes: tuple[Float[np.ndarray, "n 4"], ...]


class _Table:
    """Vectors on a grid, to be interpolated linearly at any index; beyond the border, its values.

    Args:
        vectors: (i, j, k, 3); float32 is kept.
    """

    def __init__(self, vectors: Float[np.ndarray, "i j k 3"]) -> None:
        shape = vectors.shape[:3]
        # With a fourth component, because 16 bytes are gathered faster than 12.
        padded = np.zeros((*shape[::-1], 4), np.float32)
        for c in range(3):
            padded[..., c] = vectors[..., c].T
        self._rows = padded.reshape(-1, 4)
        self.last = np.array([*shape, 1], np.float32) - 1
        self._before_last = np.maximum(self.last - 1, 0)
        self._strides = (1, shape[0], shape[0] * shape[1])
        # To the neighbour along each axis; an axis of one voxel has none.
        self._steps = [n * (m > 1) for n, m in zip(self._strides, shape, strict=True)]

    def covers(self, index: Float[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
        """Which indices (i, j, k, 0) lie between its voxels."""
        i, j, k, _ = ((index >= 0) & (index <= self.last)).T
        return i & j & k

    def at(self, index: Float[np.ndarray, "n 4"]) -> _Samples:
        """Interpolate at indices (i, j, k, 0)."""
        within = np.minimum(np.maximum(index, 0), self.last)
        lower = np.floor(np.minimum(within, self._before_last))
        share = within - lower
        # As wide as what they are multiplied with, which is faster than broadcasting.
        along_i, along_j, along_k = (share[:, [a, a, a, a]] for a in range(3))
        step_i, step_j, step_k = self._steps
        first = sum(lower[:, a].astype(np.intp) * self._strides[a] for a in range(3))

        def edge(offset: int) -> tuple[np.ndarray, np.ndarray]:
            """Values along one edge of the cube between eight voxels, and their slope."""
            values = self._rows.take(first + offset, axis=0)
            slope = self._rows.take(first + offset + step_i, axis=0)
            slope -= values
            values += along_i * slope
            return values, slope

        # Every pair of neighbours becomes one value and a slope, axis after axis, in place.
        values, slope_i = edge(0)
        slope_j, i_at_j = edge(step_j)
        at_k, i_at_k = edge(step_k)
        j_at_k, i_at_jk = edge(step_j + step_k)
        for low, high in ((values, slope_j), (at_k, j_at_k), (slope_i, i_at_j), (i_at_k, i_at_jk)):
            high -= low
            low += along_j * high
        slope_k = at_k
        for low, high in ((values, slope_k), (slope_j, j_at_k), (slope_i, i_at_k)):
            high -= low
            low += along_k * high
        slopes = slope_i, slope_j, slope_k
        beyond = within != index
        if beyond.any():
            for a in range(3):
                slopes[a][beyond[:, a]] = 0
        return _Samples(values, slopes)


class _Solver:
    """Solves ``p + w(p) = q`` in voxels of the field's grid.

    A point p of that grid goes to ``affine(p + w(p))``, so that q is ``affine⁻¹(y)``.
    """

    def __init__(self, field: DisplacementField, affine: Float[np.ndarray, "4 4"]) -> None:
        self._grid = field.grid
        self._to_moving = affine @ field.grid.affine
        rest = field.composed_with_affine(np.linalg.inv(affine)).vectors_mm
        turn = field.grid.world_to_index[:3, :3].astype(np.float32)
        in_voxels = np.empty(rest.shape, np.float32, order="F")
        for a in range(3):
            in_voxels[..., a] = sum(turn[a, b] * rest[..., b] for b in range(3))
        self._table = _Table(in_voxels)
        self._mm = _of_vectors(self._to_moving)

    def solve(self, grid: Grid, start: DisplacementField | None, steps: int) -> Inverse:
        """Find p at the voxels of a grid of the moving side.

        Args:
            grid: Its voxels are y.
            start: An inverse to start from, on `grid`; None is that of the affine.
            steps: So many at most.
        """
        found = np.empty((*grid.shape, 3), np.float32, order="F")
        error_mm = np.empty(grid.shape, np.float32, order="F")
        inside = np.empty(grid.shape, bool, order="F")
        vectors = _components(found)
        errors, insides = error_mm.ravel(order="F"), inside.ravel(order="F")
        starts = start and _components(start.vectors_mm)
        to_q = _of_points(np.linalg.inv(self._to_moving) @ grid.affine)
        to_start = _of_points(self._grid.world_to_index @ grid.affine)
        turn = _of_vectors(self._grid.world_to_index)
        to_vectors, minus_y = _of_vectors(self._grid.affine), _of_points(-grid.affine)
        minus_y[3, :3] += self._grid.affine[:3, 3]

        def fill(first: int) -> None:
            part = slice(first, min(first + _CHUNK, len(errors)))
            voxels = _indices(np.arange(part.start, part.stop), grid.shape)
            q = voxels @ to_q
            p = q.copy()
            if starts:
                p = voxels @ to_start + _rows([vector[part] for vector in starts]) @ turn
            p, errors[part] = self._newton(q, p, steps)
            insides[part] = self._table.covers(p)
            displacement = p @ to_vectors + voxels @ minus_y
            for c in range(3):
                vectors[c][part] = displacement[:, c]

        mapped(fill, range(0, len(errors), _CHUNK))
        return Inverse(DisplacementField(grid, found), error_mm, inside)

    def _newton(
        self, q: Float[np.ndarray, "n 4"], start: Float[np.ndarray, "n 4"], steps: int
    ) -> tuple[Float[np.ndarray, "n 4"], Float[np.ndarray, " n"]]:
        """The best p found for each q, into `start`, and its error in mm."""
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
        return slopes, missing, _length(missing @ self._mm)


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
    step *= np.minimum(1, _LONGEST / np.maximum(_length(step), _LONGEST))[:, np.newaxis]
    return step


def _cross(a: list[np.ndarray], b: list[np.ndarray]) -> list[np.ndarray]:
    return [a[n - 2] * b[n - 1] - a[n - 1] * b[n - 2] for n in range(3)]


def _dot(a: list[np.ndarray], b: list[np.ndarray]) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _length(rows: Float[np.ndarray, "n m"]) -> Float[np.ndarray, " n"]:
    return np.sqrt(np.einsum("nm,nm->n", rows, rows))


def _indices(numbers: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "n 4"]:
    """Rows (i, j, k, 1) of voxels by their numbers in memory, the first axis fastest."""
    j_k, i = np.divmod(numbers, shape[0])
    k, j = np.divmod(j_k, shape[1])
    return _rows([i, j, k], 1)


def _rows(columns: list[np.ndarray], fourth: float = 0) -> Float[np.ndarray, "n 4"]:
    rows = np.full((len(columns[0]), 4), fourth, np.float32)
    for c, column in enumerate(columns):
        rows[:, c] = column
    return rows


def _of_points(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """What rows (i, j, k, 1) are multiplied with, to become points with a fourth number of 0."""
    matrix = np.ascontiguousarray(affine.T, np.float32)
    matrix[:, 3] = 0
    return matrix


def _of_vectors(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The same for rows of vectors, which the offset does not move."""
    matrix = _of_points(affine)
    matrix[3] = 0
    return matrix


def _components(vectors: Float[np.ndarray, "i j k 3"]) -> list[Float[np.ndarray, " n"]]:
    """One array per component, the first axis fastest; views, where memory is in that order."""
    return [vectors[..., c].ravel(order="F") for c in range(3)]


def _foreground(volume: Volume) -> Bool[np.ndarray, "i j k"]:
    return volume.data > foreground_threshold(volume.data)


def _summary(error_mm: Float[np.ndarray, " n"]) -> dict[str, float] | None:
    if not error_mm.size:
        return None
    p99, highest = np.percentile(error_mm, [99, 100])
    return {"mean": float(error_mm.mean()), "p99": float(p99), "max": float(highest)}


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

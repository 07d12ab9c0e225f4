"""A field's values and slopes at many points: linear interpolation of rows of float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

# Points at a time, whose neighbours and slopes stay in the cache.
CHUNK = 8192


class Samples(NamedTuple):
    """A field at n points, each with an unused fourth component.

    Attributes:
        values: Its vectors.
        slopes: How they change with the index along each of the three axes.
    """

    values: Float[np.ndarray, "n 4"]
    slopes: tuple[Float[np.ndarray, "n 4"], ...]


class Table:
    """Vectors on a grid, interpolated linearly at any index; beyond the border, its values.

    Args:
        vectors: (i, j, k, 3); stored as float32.
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

    def at(self, index: Float[np.ndarray, "n 4"]) -> Samples:
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
        return Samples(values, slopes)


def rows_of_indices(order: np.ndarray, shape: tuple[int, ...]) -> Float[np.ndarray, "n 4"]:
    """Indices (i, j, k, 1) of voxels, given by their order in memory, the first axis fastest."""
    j_k, i = np.divmod(order, shape[0])
    k, j = np.divmod(j_k, shape[1])
    return rows_of([i, j, k], 1)


def rows_of(columns: list[np.ndarray], fourth: float = 0) -> Float[np.ndarray, "n 4"]:
    """Three columns as rows of four."""
    rows = np.full((len(columns[0]), 4), fourth, np.float32)
    for c, column in enumerate(columns):
        rows[:, c] = column
    return rows


def point_matrix(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The matrix that takes rows (i, j, k, 1) to points with a fourth component of 0."""
    matrix = np.ascontiguousarray(affine.T, np.float32)
    matrix[:, 3] = 0
    return matrix


def vector_matrix(affine: Float[np.ndarray, "4 4"]) -> Float[np.ndarray, "4 4"]:
    """The same for rows of vectors, to which the offset does not apply."""
    matrix = point_matrix(affine)
    matrix[3] = 0
    return matrix


def components_of(vectors: Float[np.ndarray, "i j k 3"]) -> list[Float[np.ndarray, " n"]]:
    """One array per component, the first axis fastest; views, where memory is in that order."""
    return [vectors[..., c].ravel(order="F") for c in range(3)]


def lengths(rows: Float[np.ndarray, "n m"]) -> Float[np.ndarray, " n"]:
    """Euclidean length of each row."""
    return np.sqrt(np.einsum("nm,nm->n", rows, rows))

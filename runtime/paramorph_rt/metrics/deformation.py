"""Regularity of a displacement field."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..system.threads import mapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float

    from ..geometry.field import DisplacementField

_SLAB = 4  # slices at a time: what ten determinants of them need stays in the cache
_L2R_CROP = 2
_L2R_SHIFT = 3


class DigitalDiffeomorphism(NamedTuple):
    """How far a field is from being a diffeomorphism between its voxels, too.

    Central differences do not see a voxel that is thrown over its neighbours. Here each cube
    between eight voxels is cut into five tetrahedra, in both ways there are; the field is digitally
    diffeomorphic if all of them keep their orientation.

    Attributes:
        volume_percent: Non-diffeomorphic volume: that of the tetrahedra turned inside out, after
            the transform, as the mean of both ways; of the volume before. A tetrahedron counts
            where its right-angled corner is, or, in the cube's middle, at one of its corners.
        voxels_percent: Voxels at which any of the ten determinants is not positive.

    Source:
        Liu et al., On Finite Difference Jacobian Computation in Deformable Image Registration
        (2024), doi:10.1007/s11263-024-02047-1.
    """

    volume_percent: float
    voxels_percent: float


def regularity(field: DisplacementField) -> dict[str, float | None]:
    """All measures of this module by their names in metrics.json."""
    determinant = field.jacobian_determinant()
    volume, voxels = digital_diffeomorphism(field)
    return {
        "nonpositive_jacobian_percent": _nonpositive_percent(determinant),
        "sd_log_jacobian": _sd_log(determinant),
        "sd_log_jacobian_l2r": _sd_log_l2r(determinant),
        "nondiffeomorphic_volume_percent": volume,
        "nondiffeomorphic_voxels_percent": voxels,
    }


def nonpositive_jacobian_percent(field: DisplacementField) -> float:
    """Percentage of the field's voxels where it folds: Jacobian determinant ≤ 0.

    By central differences over the whole grid, as in the literature. An affine in the field
    multiplies all determinants by one positive number, so it does not change the percentage.
    """
    return _nonpositive_percent(field.jacobian_determinant())


def sd_log_jacobian(field: DisplacementField) -> float:
    """Standard deviation of log |J| over the field's voxels; 0 for a field that is affine.

    Determinants below 1e-9 count as that, so every folded voxel weighs as log 1e-9 ≈ -21. An
    affine in the field adds a constant to all logarithms, so it does not change the deviation.
    """
    return _sd_log(field.jacobian_determinant())


def sd_log_jacobian_l2r(field: DisplacementField) -> float | None:
    """Standard deviation of log (|J| + 3), without the two outermost voxels on each side.

    This is what the Learn2Reg challenge reports under the name SDlogJ. It cannot be compared with
    the plain one, sees folds only below -3, and an affine in the field changes it.

    Returns:
        None for a field of 4 voxels or fewer on an axis.

    Source:
        The challenge's evaluation.py (github.com/MDL-UzL/L2R).
    """
    return _sd_log_l2r(field.jacobian_determinant())


def digital_diffeomorphism(field: DisplacementField) -> DigitalDiffeomorphism:
    """Volume and voxels of a field that are not digitally diffeomorphic.

    Both over the voxels that have neighbours on all sides; 0 for an affine that does not mirror.
    On as many threads as ITK has (`threads.mapped`).
    """
    starts = range(1, field.grid.shape[2] - 1, _SLAB)
    volumes, broken = zip(*mapped(partial(_broken_in_slab, field), starts), strict=True)
    inner = np.prod(np.subtract(field.grid.shape, 2))
    # A tetrahedron has a sixth of its determinant's volume, and each way to cut counts half.
    return DigitalDiffeomorphism(
        volume_percent=float(100 * sum(volumes) / 12 / inner),
        voxels_percent=float(100 * sum(broken) / inner),
    )


def _broken_in_slab(field: DisplacementField, start: int) -> tuple[float, int]:
    """Sum of the negative determinants, as a positive number, and voxels with any not positive."""
    stop = min(start + _SLAB, field.grid.shape[2] - 1)
    slices = field.vectors_mm[:, :, start - 1 : stop + 1]
    vectors = np.ascontiguousarray(slices.transpose(3, 2, 1, 0), dtype=np.float32)
    broken = np.zeros(np.subtract(vectors.shape[1:], 2), dtype=bool)
    volume = 0.0
    for determinant in _ten_determinants(vectors, field.grid.affine[:3, :3]):
        failed = determinant <= 0
        if failed.any():
            volume -= float(determinant[failed].sum(dtype=np.float64))
            broken |= failed
    return volume, int(np.count_nonzero(broken))


def _ten_determinants(
    vectors_mm: Float[np.ndarray, "3 k j i"], matrix: Float[np.ndarray, "3 3"]
) -> Iterator[Float[np.ndarray, "k j i"]]:
    """Of the tetrahedra at each inner voxel, over the determinant of the grid; 1 or 2 if unmoved.

    Eight reach to one neighbour along each axis, forwards or backwards; two reach to three
    neighbours across a face, and are the middles of the cubes ahead and behind.
    """
    inner = vectors_mm[:, 1:-1, 1:-1, 1:-1]
    per_voxel = np.float32(1 / np.linalg.det(matrix))

    def edge(*steps: int) -> Float[np.ndarray, "3 k j i"]:
        """From where an inner voxel goes to where its neighbour goes."""
        window = [
            slice(1 + step, size - 1 + step)
            for step, size in zip(steps[::-1], vectors_mm.shape[1:], strict=True)
        ]
        difference = vectors_mm[:, *window] - inner
        difference += (matrix @ steps).astype(np.float32).reshape(3, 1, 1, 1)  # at rest
        return difference

    along_i, along_j, along_k = (
        (edge(*np.eye(3, dtype=int)[axis]), -edge(*-np.eye(3, dtype=int)[axis]))
        for axis in range(3)
    )
    for second, third in product(along_j, along_k):
        normal = _cross(second, third)
        for first in along_i:
            yield _dot(first, normal, per_voxel)
    for s in (1, -1):
        normal = _cross(edge(0, s, s), edge(s, 0, s))
        yield _dot(edge(s, s, 0), normal, s * per_voxel)


def _cross(a: Float[np.ndarray, "3 ..."], b: Float[np.ndarray, "3 ..."]) -> np.ndarray:
    """`np.cross(a, b, axis=0)`, which is slow for components that lie apart."""
    result = np.empty_like(a)
    for c, (second, third) in enumerate(((1, 2), (2, 0), (0, 1))):
        np.multiply(a[second], b[third], out=result[c])
        result[c] -= a[third] * b[second]
    return result


def _dot(
    a: Float[np.ndarray, "3 ..."], b: Float[np.ndarray, "3 ..."], factor: np.float32
) -> np.ndarray:
    """Sum over the components of a · b, times a factor; faster than `np.einsum`."""
    result = a[0] * b[0]
    result += a[1] * b[1]
    result += a[2] * b[2]
    result *= factor
    return result


def _nonpositive_percent(determinant: Float[np.ndarray, "i j k"]) -> float:
    return float(100 * np.mean(determinant <= 0))


def _sd_log(determinant: Float[np.ndarray, "i j k"]) -> float:
    return float(np.std(np.log(np.maximum(determinant, 1e-9)), dtype=np.float64))


def _sd_log_l2r(determinant: Float[np.ndarray, "i j k"]) -> float | None:
    inner = determinant[(slice(_L2R_CROP, -_L2R_CROP),) * 3]
    if not inner.size:
        return None
    return float(np.std(np.log(np.clip(inner + _L2R_SHIFT, 1e-9, 1e9)), dtype=np.float64))

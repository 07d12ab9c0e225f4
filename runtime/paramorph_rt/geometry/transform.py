"""Transforms behind one interface: affines and displacement fields, both fixed → moving.

Either has a `grid` (None for an affine), maps points (`map`), can be followed by an affine
(``affine @ transform``), checked (`check`) and converted for ITK (`to_itk`). `compose` joins any
sequence of them; a field is inverted by `invert_field`, which also gives the error of the inverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import TransformError
from .field import DisplacementField
from .spaces import itk_affine

if TYPE_CHECKING:
    import SimpleITK as sitk
    from jaxtyping import Float

    from .spaces import Grid


class Affine(np.ndarray):
    """A 4×4 float64 matrix, world mm → world mm (RAS).

    It is an array, because callers pass affines as arrays and go on computing with what they get.
    ``second @ first`` maps a point by `first`, then by `second`.
    """

    grid: None = None

    def __new__(cls, matrix: Float[np.ndarray, "4 4"]) -> Affine:
        """Copy a matrix."""
        return np.array(matrix, dtype=np.float64).view(cls)

    def map(self, points_mm: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Map points, world mm (RAS)."""
        matrix = np.asarray(self)
        return points_mm @ matrix[:3, :3].T + matrix[:3, 3]

    def check(self, name: str) -> None:
        """Refuse a matrix that maps space onto less than space.

        Raises:
            TransformError: Not finite, the last row is not 0 0 0 1, or there is no inverse; `name`
                is what the message calls the affine.
        """
        usable = np.isfinite(self).all() and abs(np.linalg.det(self[:3, :3])) >= 1e-9
        if not (usable and np.allclose(self[3], (0, 0, 0, 1))):
            raise TransformError(
                f"{name}: expected an invertible affine with last row 0 0 0 1, got "
                f"{self.round(6).tolist()}; check that it is the right file."
            )

    def inverse(self) -> Affine:
        """Moving → fixed, of fixed → moving."""
        return Affine(np.linalg.inv(self))

    def on(self, grid: Grid) -> DisplacementField:
        """The same as a displacement field."""
        return self @ DisplacementField(grid, np.zeros((*grid.shape, 3), dtype=np.float32))

    def to_itk(self) -> sitk.Transform:
        """For ITK, between LPS worlds."""
        return itk_affine(np.asarray(self))


# What functions take: a plain array is an affine.
Transform = np.ndarray | DisplacementField


def as_transform(transform: Transform) -> Affine | DisplacementField:
    """Give a plain 4×4 array the interface of transforms; a field has it already."""
    return transform if isinstance(transform, DisplacementField) else Affine(transform)

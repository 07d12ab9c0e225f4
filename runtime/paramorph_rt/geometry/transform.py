"""Transforms behind one interface: affines and displacement fields, both fixed → moving.

Either has a `grid` (None for an affine), maps points (`map`), can be followed by an affine
(`composed_with_affine`) and converted for ITK (`to_itk`). `compose` joins any sequence of them; a
field is inverted by `invert_field`, which also gives the error of the inverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .field import DisplacementField
from .spaces import itk_affine

if TYPE_CHECKING:
    import SimpleITK as sitk
    from jaxtyping import Float

    from .spaces import Grid


class Affine(np.ndarray):
    """A 4×4 float64 matrix, world mm → world mm (RAS).

    It is an array, because callers pass affines as arrays and go on computing with what they get.
    """

    grid = None

    def __new__(cls, matrix: Float[np.ndarray, "4 4"]) -> Affine:
        """Copy a matrix."""
        return np.array(matrix, dtype=np.float64).view(cls)

    def map(self, points_mm: Float[np.ndarray, "... 3"]) -> Float[np.ndarray, "... 3"]:
        """Map points, world mm (RAS)."""
        matrix = np.asarray(self)
        return points_mm @ matrix[:3, :3].T + matrix[:3, 3]

    def composed_with_affine(self, affine: Float[np.ndarray, "4 4"]) -> Affine:
        """This affine, followed by another one."""
        return Affine(affine @ np.asarray(self))

    def inverse(self) -> Affine:
        """Moving → fixed, of fixed → moving."""
        return Affine(np.linalg.inv(self))

    def on(self, grid: Grid) -> DisplacementField:
        """The same as a displacement field."""
        nothing = np.zeros((*grid.shape, 3), dtype=np.float32)
        return DisplacementField(grid, nothing).composed_with_affine(np.asarray(self))

    def to_itk(self) -> sitk.Transform:
        """For ITK, between LPS worlds."""
        return itk_affine(np.asarray(self))


# What functions take: a plain array is an affine.
Transform = np.ndarray | DisplacementField


def as_transform(transform: Transform) -> Affine | DisplacementField:
    """Give a plain 4×4 array the interface of transforms; a field has it already."""
    return transform if isinstance(transform, DisplacementField) else Affine(transform)

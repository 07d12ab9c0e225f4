"""Regularity of a displacement field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ..field import DisplacementField


def nonpositive_jacobian_percent(field: DisplacementField) -> float:
    """Percentage of the field's voxels where it folds: Jacobian determinant ≤ 0.

    By central differences over the whole grid, as in the literature. An affine in the field
    multiplies all determinants by one positive number, so it does not change the percentage.
    """
    return float(100 * np.mean(field.jacobian_determinant() <= 0))

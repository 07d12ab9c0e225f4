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


def sd_log_jacobian(field: DisplacementField) -> float:
    """Standard deviation of log |J| over the field's voxels; 0 for a field that is affine.

    Determinants below 1e-9 count as that, so every folded voxel weighs as log 1e-9 ≈ -21; the
    Learn2Reg challenge's figure of this name takes log (|J| + 3) and cannot be compared. An affine
    in the field adds a constant to all logarithms, so it does not change the deviation.
    """
    determinant = np.maximum(field.jacobian_determinant(), 1e-9)
    return float(np.std(np.log(determinant), dtype=np.float64))

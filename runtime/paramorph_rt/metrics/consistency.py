"""How far a transform and its inverse are from undoing each other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ..geometry.interpolation import (
    CHUNK,
    Table,
    components_of,
    lengths,
    point_matrix,
    rows_of,
    rows_of_indices,
    vector_matrix,
)
from ..geometry.resample import resample_to_grid
from ..steps.foreground import foreground_of
from ..system.threads import mapped

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from ..geometry.field import DisplacementField
    from ..geometry.inverse import Inverse
    from ..images.volume import Volume


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
    ways = {"from_moving": _summary(inverse.error_mm[foreground_of(moving) & inverse.inside])}
    if fixed is not None:
        if not fixed.grid.matches(field.grid):
            fixed = replace(fixed, data=resample_to_grid(fixed, field.grid), grid=field.grid)
        ways["from_fixed"] = _summary(_error_of_fixed(inverse.field, field, foreground_of(fixed)))
    return ways


def _error_of_fixed(
    inverse: DisplacementField, field: DisplacementField, counting: Bool[np.ndarray, "i j k"]
) -> Float[np.ndarray, " n"]:
    """``|x + field(x) + inverse(x + field(x)) - x|`` at the voxels x that count."""
    table = Table(inverse.vectors_mm)
    to_inverse = inverse.grid.world_to_index
    to_index, turn = point_matrix(to_inverse @ field.grid.affine), vector_matrix(to_inverse)
    voxels = np.flatnonzero(counting.ravel(order="F"))
    vectors = components_of(field.vectors_mm)

    def of(start: int) -> Float[np.ndarray, " n"]:
        part = voxels[start : start + CHUNK]
        moved = rows_of([vector[part] for vector in vectors])
        index = rows_of_indices(part, field.grid.shape) @ to_index + moved @ turn
        inside = table.covers(index)
        return lengths(moved[inside] + table.at(index[inside]).values)

    parts = mapped(of, range(0, len(voxels), CHUNK))
    return np.concatenate([np.empty(0, np.float32), *parts])


def _summary(error_mm: Float[np.ndarray, " n"]) -> dict[str, float] | None:
    if not error_mm.size:
        return None
    p99, highest = np.percentile(error_mm, [99, 100])
    return {"mean": float(error_mm.mean()), "p99": float(p99), "max": float(highest)}

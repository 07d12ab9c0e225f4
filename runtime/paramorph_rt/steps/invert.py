"""Station 7 of a registration: the inverse field, and how exact it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..geometry.inverse import invert_field
from ..metrics.consistency import consistency_mm

if TYPE_CHECKING:
    from ..geometry.field import DisplacementField
    from ..system.stopwatch import Stopwatch
    from .load import Images


def invert(
    images: Images, field: DisplacementField, metrics: dict[str, Any], seconds: Stopwatch
) -> DisplacementField:
    """Moving → fixed, on the moving image's grid.

    Args:
        images: The pair.
        field: Fixed → moving, complete.
        metrics: Get the inverse consistency in mm, from either image.
        seconds: Gets the stage.
    """
    with seconds("inverse"):
        inverse = invert_field(field, images.moving.grid)
        consistency = consistency_mm(inverse, field, images.moving, images.fixed)
        metrics["inverse_consistency_mm"] = consistency
    return inverse.field

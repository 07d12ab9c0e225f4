"""Which levels a refinement has on which grids, and where it compares features."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..geometry.spaces import Grid
    from .settings import Level

log = logging.getLogger(__name__)

#: A level of more voxels is left out: it would take longer, and more memory, than it is worth.
MOST_VOXELS = 24_000_000
#: A level must be at least this share of the fixed image's finest spacing, or it shows nothing new.
_FINER = 0.75
_LEAST_SIZE = 4  # voxels along an axis
#: Features are compared on levels whose voxels are not smaller than theirs by more than this.
_COARSER = 1.4


def levels_on_grids(
    view: Grid, fixed: Grid | None, levels: Sequence[Level]
) -> Iterator[tuple[Level, Grid]]:
    """The levels that are worth it for a fixed image, each with its grid.

    Args:
        view: Field of view and axes of all grids; its spacing does not matter.
        fixed: Of the image; None is one of any resolution.
        levels: Coarse to fine.
    """
    extents = view.spacing * view.shape
    native = np.zeros(3)
    if fixed is not None:
        native = fixed.spacing[np.abs(view.directions.T @ fixed.directions).argmax(axis=1)]
    usable = [level for level in levels if level.iterations]
    for level in usable:
        spacing = np.maximum(level.spacing_mm, native)
        shape = np.maximum(_LEAST_SIZE, np.round(extents / spacing).astype(int))
        if level is not usable[0]:
            if level.spacing_mm < _FINER * native.min():
                log.debug(
                    "refinement: no level of %g mm for voxels of %s", level.spacing_mm, native
                )
                continue
            if math.prod(shape.tolist()) > MOST_VOXELS:
                log.info(
                    "refinement: no level of %g mm, which has too many voxels", level.spacing_mm
                )
                continue
        yield level, view.with_shape(shape.tolist())


def compares_features(level: Level, grid: Grid) -> bool:
    """Whether a level compares features that lie on this grid."""
    return level.features > 0 and level.spacing_mm * _COARSER >= grid.spacing.min()

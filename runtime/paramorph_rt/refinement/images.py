"""Both images of a pair on the grids of a refinement, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..spaces import Grid


@dataclass(frozen=True, eq=False)
class Features:
    """Several channels of each image, such as a network's, that are alike where anatomy is.

    Attributes:
        moving: On the grid of the images, affinely aligned.
        fixed: On the same grid.
    """

    moving: Float[np.ndarray, "c d h w"]
    fixed: Float[np.ndarray, "c d h w"]


@dataclass(frozen=True, eq=False)
class LevelImages:
    """What one level of a refinement compares; float32, in C order.

    Attributes:
        moving: Affinely aligned, in [0, 1].
        fixed: In [0, 1].
        grid: Of all of them.
        features: Of both, if there are any.
        counts: Weight of each voxel's force, 0 in a hole of a mask; None counts all.
    """

    moving: Float[np.ndarray, "d h w"]
    fixed: Float[np.ndarray, "d h w"]
    grid: Grid
    features: Features | None = None
    counts: Float[np.ndarray, "d h w"] | None = None

"""Both images of a pair on the grids of a refinement, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .rescaling import rescaled
from .self_similarity import descriptors

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..geometry.spaces import Grid


@dataclass(frozen=True, eq=False)
class Features:
    """Several channels of each image, such as a network's, that are alike where anatomy is.

    Attributes:
        moving: On the grid of the images, affinely aligned.
        fixed: On the same grid.
        smoothing: Factor on `Level.feature_sigma`.
    """

    moving: Float[np.ndarray, "c d h w"]
    fixed: Float[np.ndarray, "c d h w"]
    smoothing: float = 1.0

    def on(self, grid: Grid, target: Grid, threads: int | None = None) -> Features:
        """The features, which lie on `grid`, on another of the same field of view."""
        both = self.moving, self.fixed
        moving, fixed = (rescaled(image, grid, target, threads) for image in both)
        return Features(moving, fixed, self.smoothing)


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

    def on(self, grid: Grid, threads: int | None = None) -> LevelImages:
        """The images, without features, on a coarser grid of the same field of view."""
        counts = None if self.counts is None else rescaled(self.counts, self.grid, grid, threads)
        both = self.moving, self.fixed
        moving, fixed = (rescaled(image, self.grid, grid, threads) for image in both)
        return LevelImages(moving, fixed, grid, None, counts)

    def with_descriptors(self) -> Features:
        """The features, if there are any, with descriptors of both images after them."""
        moving, fixed = descriptors(self.moving), descriptors(self.fixed)
        if self.features is not None:
            moving = np.concatenate([self.features.moving, moving])
            fixed = np.concatenate([self.features.fixed, fixed])
        return Features(moving, fixed)

"""Two volumes → two arrays on the network grid, each by one resampling of its original voxels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..errors import AlignmentError
from ..geometry.resample import resample_to_grid
from ..geometry.spaces import Grid, network_grid
from ..system.threads import in_parallel
from .foreground import foreground_box, foreground_threshold
from .intensity import normalise_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float

    from ..bundle import InputSpec, IntensitySpec
    from ..images.volume import Volume
    from .foreground import MaskedImage


@dataclass(frozen=True, eq=False)
class PreparedPair:
    """What the network sees.

    Attributes:
        moving: Moving image on `grid`, affinely aligned, in [0, 1].
        fixed: Fixed image on `grid`, in [0, 1].
        grid: The network grid, placed over the fixed foreground.
        spacing_growth: How much coarser than the model's own spacing the grid had to become for
            the foreground to fit; 1 when it fitted.
    """

    moving: Float[np.ndarray, "i j k"]
    fixed: Float[np.ndarray, "i j k"]
    grid: Grid
    spacing_growth: float


def prepare_pair(
    moving: MaskedImage,
    fixed: MaskedImage,
    affine: Float[np.ndarray, "4 4"],
    spec: InputSpec,
    shapes: Sequence[tuple[int, int, int]] | None = None,
) -> PreparedPair:
    """Bring both images onto the network grid and into [0, 1].

    Outside its mask an image is background to the network. Holes of a mask, such as a lesion that
    only one image has, show what the other image has there instead, so nothing in them differs.

    Args:
        moving: On its own grid.
        fixed: On its own grid.
        affine: Fixed world mm → moving world mm (RAS).
        spec: Grid and intensities that the network expects.
        shapes: Voxels of the grids that there are networks for; None is that of `spec` alone.

    Raises:
        AlignmentError: The moving foreground lies outside the network grid.
        VolumeError: A mask without any of its image's foreground.
    """
    grid = network_grid_for(fixed.image, spec, shapes)
    on_grid = images_on_grid(moving, fixed, affine, grid, spec.intensity)
    growth = float(grid.spacing[0] / spec.grid.spacing_mm[0])
    return PreparedPair(on_grid.moving, on_grid.fixed, grid, growth)


class ImagesOnGrid(NamedTuple):
    """Both images of a pair on one grid.

    Attributes:
        moving: Affinely aligned, in [0, 1].
        fixed: In [0, 1].
        holes: Where a mask has a hole and so nothing differs; None if none has.
    """

    moving: Float[np.ndarray, "i j k"]
    fixed: Float[np.ndarray, "i j k"]
    holes: Bool[np.ndarray, "i j k"] | None


def images_on_grid(
    moving: MaskedImage,
    fixed: MaskedImage,
    affine: Float[np.ndarray, "4 4"],
    grid: Grid,
    intensity: IntensitySpec,
) -> ImagesOnGrid:
    """`prepare_pair` on a grid that is known; arguments and errors as there."""
    aligned, target = in_parallel(
        lambda: prepare_moving(moving.image, fixed.volume.name, grid, affine, intensity),
        lambda: normalise_for(resample_to_grid(fixed.image, grid), intensity),
    )
    moving_hole = _hole_on_grid(moving.hole, grid, affine)
    fixed_hole = _hole_on_grid(fixed.hole, grid, np.eye(4))
    if moving_hole is None and fixed_hole is None:
        return ImagesOnGrid(aligned, target, None)
    nowhere = np.zeros(grid.shape, bool)
    of_moving = nowhere if moving_hole is None else moving_hole
    of_fixed = nowhere if fixed_hole is None else fixed_hole
    return ImagesOnGrid(
        moving=np.where(of_moving & ~of_fixed, target, aligned),
        fixed=np.where(of_fixed & ~of_moving, aligned, target),
        holes=of_moving | of_fixed,
    )


def prepare_moving(
    moving: Volume,
    fixed_name: str,
    grid: Grid,
    affine: Float[np.ndarray, "4 4"],
    intensity: IntensitySpec,
) -> Float[np.ndarray, "i j k"]:
    """The moving half of a pair: on the network grid, in [0, 1].

    Args:
        moving: Image on its own grid.
        fixed_name: What a message calls the image over which `grid` lies.
        grid: The network grid.
        affine: Fixed world mm → moving world mm (RAS).
        intensity: Percentiles that become 0 and 1.

    Raises:
        AlignmentError: The moving foreground lies outside the network grid.
    """
    aligned = resample_to_grid(moving, grid, affine)
    if not (aligned > foreground_threshold(moving.data)).any():
        raise AlignmentError(
            f"{moving.name}: expected to lie upon {fixed_name} in the world, got no common voxel; "
            "check that both show the same anatomy, or leave out --no-affine."
        )
    return normalise_for(aligned, intensity)


def network_grid_for(
    fixed: Volume, spec: InputSpec, shapes: Sequence[tuple[int, int, int]] | None = None
) -> Grid:
    """Place the network grid of `spec` over the foreground of the fixed image.

    Args:
        fixed: Image on its own grid.
        spec: Spacing and orientation of the grid.
        shapes: That it may have: the smallest takes it into which the foreground fits, or else the
            one whose spacing has to grow least. None is that of `spec` alone.
    """
    box_lo, box_hi = foreground_box(fixed)
    return network_grid(
        fixed.grid,
        box_lo,
        box_hi,
        shapes or (spec.grid.shape,),
        spec.grid.spacing_mm,
        spec.grid.orientation,
    )


def _hole_on_grid(
    hole: Volume | None, grid: Grid, affine: Float[np.ndarray, "4 4"]
) -> Bool[np.ndarray, "i j k"] | None:
    if hole is None:
        return None
    return resample_to_grid(hole, grid, affine, "nearest") != 0

"""Two volumes → two arrays on the network grid, each by one resampling of its original voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import SimpleITK as sitk

from ..errors import AlignmentError, VolumeError
from ..geometry.spaces import Grid, from_sitk, itk_affine, network_grid, place, to_sitk
from ..system.threads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Shaped

    from ..bundle import InputSpec, IntensitySpec
    from ..images.volume import Volume

Interpolation = Literal["linear", "nearest", "bspline"]
INTERPOLATORS = {
    "linear": sitk.sitkLinear,
    "nearest": sitk.sitkNearestNeighbor,
    "bspline": sitk.sitkBSpline,  # cubic
}
# Full width at half maximum of a Gaussian, in standard deviations.
_FWHM = 2.355


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
    moving: Volume,
    fixed: Volume,
    affine: Float[np.ndarray, "4 4"],
    spec: InputSpec,
    shapes: Sequence[tuple[int, int, int]] | None = None,
    *,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
) -> PreparedPair:
    """Bring both images onto the network grid and into [0, 1].

    Outside its mask an image is background to the network. Holes of a mask, such as a lesion that
    only one image has, show what the other image has there instead, so nothing in them differs.

    Args:
        moving: Image on its own grid.
        fixed: Image on its own grid.
        affine: Fixed world mm → moving world mm (RAS).
        spec: Grid and intensities that the network expects.
        shapes: Voxels of the grids that there are networks for; None is that of `spec` alone.
        moving_mask: On the grid of `moving`; what is not 0 counts, None is everything.
        fixed_mask: The same for `fixed`.

    Raises:
        AlignmentError: The moving foreground lies outside the network grid.
        VolumeError: A mask without any of its image's foreground.
    """
    grid = network_grid_for(masked(fixed, fixed_mask), spec, shapes)
    masks = {"moving_mask": moving_mask, "fixed_mask": fixed_mask}
    on_grid = images_on_grid(moving, fixed, affine, grid, spec.intensity, **masks)
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
    moving: Volume,
    fixed: Volume,
    affine: Float[np.ndarray, "4 4"],
    grid: Grid,
    intensity: IntensitySpec,
    *,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
) -> ImagesOnGrid:
    """`prepare_pair` on a grid that is known; arguments and errors as there."""
    moving, fixed = masked(moving, moving_mask), masked(fixed, fixed_mask)
    aligned, target = in_parallel(
        lambda: prepare_moving(moving, fixed.name, grid, affine, intensity),
        lambda: normalise_for(resample_to_grid(fixed, grid), intensity),
    )
    moving_hole = _hole_on_grid(moving_mask, grid, affine)
    fixed_hole = _hole_on_grid(fixed_mask, grid, np.eye(4))
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


def normalise_for(
    array: Float[np.ndarray, "i j k"], intensity: IntensitySpec
) -> Float[np.ndarray, "i j k"]:
    """`normalise` by given percentiles, and as engines want it in memory."""
    percentiles = intensity.lower_percentile, intensity.upper_percentile
    return np.ascontiguousarray(normalise(array, *percentiles))


def hole_of(mask: Volume | None) -> Volume | None:
    """1 where a mask is 0 and no way through such voxels leads to the border of its image.

    Returns:
        On the grid of the mask; None if there is no such voxel, or no mask.
    """
    if mask is None:
        return None
    inside = to_sitk((mask.data != 0).astype(np.uint8), mask.grid)
    hole = replace(mask, data=from_sitk(sitk.BinaryFillhole(inside) - inside)[0])
    return hole if hole.data.any() else None


def _hole_on_grid(
    mask: Volume | None, grid: Grid, affine: Float[np.ndarray, "4 4"]
) -> Bool[np.ndarray, "i j k"] | None:
    hole = hole_of(mask)
    if hole is None:
        return None
    return resample_to_grid(hole, grid, affine, "nearest") != 0


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


def masked(volume: Volume, mask: Volume | None) -> Volume:
    """The volume with its minimum (air, whatever its number) wherever the mask is 0.

    Args:
        volume: Image.
        mask: On the same grid; None leaves the image as it is.

    Raises:
        VolumeError: The mask leaves nothing of the foreground.
    """
    if mask is None:
        return volume
    data = np.where(mask.data != 0, volume.data, volume.data.min())
    if not (data > foreground_threshold(volume.data)).any():
        raise VolumeError(
            f"{mask.name}: expected a mask with some of what {volume.name} shows, got one of "
            "nothing but its background; check that it is the right file."
        )
    return replace(volume, data=data)


def foreground_threshold(data: Float[np.ndarray, "i j k"]) -> float:
    """Intensity that parts foreground from background: minimum + 5 % of the robust range.

    The range ends at the 99.5th percentile, so that a few bright voxels do not move it.
    """
    low = float(data.min())
    # Every third voxel per axis is a 27th of the work and the same percentile to a percent.
    high = float(np.percentile(data[::3, ::3, ::3], 99.5))
    if high <= low:  # almost everything is background
        high = float(data.max())
    return low + 0.05 * (high - low)


def foreground_box(volume: Volume) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """First voxel of the foreground on each axis, and one past its last."""
    mask = volume.data > foreground_threshold(volume.data)
    present = [np.flatnonzero(_any_along_others(mask, axis)) for axis in range(3)]
    return tuple(int(p[0]) for p in present), tuple(int(p[-1]) + 1 for p in present)


def share_outside(volume: Volume, grid: Grid) -> float:
    """Share of the foreground's voxels whose centres lie in no voxel of another grid, 0 to 1."""
    index = np.argwhere(volume.data > foreground_threshold(volume.data))
    to_index = np.linalg.inv(grid.affine) @ volume.grid.affine
    there = index @ to_index[:3, :3].T + to_index[:3, 3]
    covered = ((there >= -0.5) & (there <= np.array(grid.shape) - 0.5)).all(axis=1)
    return 1.0 - float(covered.mean())


def resample_to_grid(
    volume: Volume,
    grid: Grid,
    affine: Float[np.ndarray, "4 4"] | None = None,
    interpolation: Interpolation = "linear",
    *,
    smooth: bool = True,
) -> Shaped[np.ndarray, "i j k"]:
    """Sample a volume at the voxels of another grid.

    ``result[p] = volume(affine(world of p in grid))``

    Args:
        volume: Source on its own grid.
        grid: Target.
        affine: Target world mm → source world mm (RAS); None is the identity.
        interpolation: "nearest" for label maps, so that no new labels appear.
        smooth: Where the target is coarser than the source, smooth first by the Gaussian that
            takes the source's resolution to the target's, so that nothing aliases. "nearest"
            never smooths.

    Returns:
        Array on `grid`, dtype of the source; outside the source its minimum, 0 for "nearest".
    """
    transform = np.eye(4) if affine is None else affine
    image = to_sitk(volume.data, volume.grid)
    if interpolation != "nearest" and smooth:
        image = _without_aliases(image, _step_in_voxels(volume.grid, grid, transform))
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.shape)
    place(resampler, grid)
    resampler.SetTransform(itk_affine(transform))
    resampler.SetInterpolator(INTERPOLATORS[interpolation])
    resampler.SetDefaultPixelValue(outside_value(volume, interpolation))
    return sitk.GetArrayFromImage(resampler.Execute(image)).T


def outside_value(volume: Volume, interpolation: Interpolation) -> float:
    """What a sample outside the volume is: its minimum (air, whatever its number), or label 0."""
    return 0.0 if interpolation == "nearest" else float(volume.data.min())


def normalise(
    array: Float[np.ndarray, "i j k"], lower_percentile: float, upper_percentile: float
) -> Float[np.ndarray, "i j k"]:
    """Map intensities linearly to [0, 1] and clip.

    The percentiles are taken over the voxels brighter than the minimum, so that the amount of
    background does not matter; 0 and 100 stand for the minimum and maximum themselves.

    Args:
        array: Intensities in any unit; not constant.
        lower_percentile: Of 100; becomes 0.
        upper_percentile: Of 100; becomes 1.
    """
    return scaled(array, *intensity_range(array, lower_percentile, upper_percentile))


def intensity_range(
    array: Float[np.ndarray, "i j k"], lower_percentile: float, upper_percentile: float
) -> tuple[float, float]:
    """The intensities that `normalise` maps to 0 and 1."""
    values = array.ravel(order="K")  # in the order of memory, which is far faster
    lowest = float(values.min())
    bright = values[values > lowest]
    low = float(np.percentile(bright, lower_percentile)) if lower_percentile > 0 else lowest
    high = float(np.percentile(bright, upper_percentile))
    if high <= low:  # a nearly binary image: its percentiles coincide
        low, high = lowest, float(values.max())
    return low, high


def scaled(
    array: Float[np.ndarray, "*shape"], low: float, high: float
) -> Float[np.ndarray, "*shape"]:
    """Map intensities linearly so that `low` becomes 0 and `high` 1, and clip."""
    result = (array - np.float32(low)) / np.float32(high - low)
    return result.clip(0, 1, out=result).astype(np.float32, copy=False)


def _any_along_others(mask: Bool[np.ndarray, "i j k"], axis: int) -> Bool[np.ndarray, " n"]:
    return np.any(mask, axis=tuple(other for other in range(3) if other != axis))


def _step_in_voxels(
    source: Grid, target: Grid, transform: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, " 3"]:
    """How far one target voxel reaches along each source axis, in source voxels.

    The row norm is the scale factor whatever the rotation between the two.
    """
    target_to_source = np.linalg.inv(source.affine) @ transform @ target.affine
    return np.linalg.norm(target_to_source[:3, :3], axis=1)


def _without_aliases(image: sitk.Image, step: Float[np.ndarray, " 3"]) -> sitk.Image:
    sigma = np.sqrt(np.maximum(0.0, step**2 - 1)) / _FWHM
    if sigma.max() < 0.1:  # a tenth of a voxel changes no sample visibly
        return image
    # ITK's discrete kernel stays exact below one voxel, where its recursive one does not.
    return sitk.DiscreteGaussian(image, (sigma**2).tolist(), 32, 0.01, False)

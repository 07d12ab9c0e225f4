"""A volume on another grid: the only place that sets up ITK's resampling."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import SimpleITK as sitk

from ..images.background import background_of
from .spaces import from_sitk, itk_affine, place, to_sitk

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

    from ..images.volume import Volume
    from .spaces import Grid

Interpolation = Literal["linear", "nearest", "bspline"]
INTERPOLATORS = {
    "linear": sitk.sitkLinear,
    "nearest": sitk.sitkNearestNeighbor,
    "bspline": sitk.sitkBSpline,  # cubic
}
# Full width at half maximum of a Gaussian, in standard deviations.
FWHM = 2.355


def resampled(
    image: sitk.Image,
    grid: Grid,
    transform: sitk.Transform | None = None,
    interpolation: Interpolation = "linear",
    outside: float = 0.0,
) -> sitk.Image:
    """Sample an ITK image at the voxels of a grid.

    Args:
        image: Of scalars or vectors.
        grid: Target.
        transform: Target world → source world (LPS); None is the identity.
        interpolation: A key of `INTERPOLATORS`.
        outside: Value of samples outside the image.
    """
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize(grid.shape)
    place(resampler, grid)
    if transform is not None:
        resampler.SetTransform(transform)
    resampler.SetInterpolator(INTERPOLATORS[interpolation])
    resampler.SetDefaultPixelValue(outside)
    return resampler.Execute(image)


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
        Array on `grid`, dtype of the source; outside the source its background, 0 for "nearest".
    """
    transform = np.eye(4) if affine is None else affine
    image = to_sitk(volume.data, volume.grid)
    if interpolation != "nearest" and smooth:
        image = _without_aliases(image, _step_in_voxels(volume.grid, grid, transform))
    outside = outside_value(volume, interpolation)
    result = resampled(image, grid, itk_affine(transform), interpolation, outside)
    return sitk.GetArrayFromImage(result).T


def averaged(volume: Volume, spacing_mm: float | Float[np.ndarray, " 3"]) -> Volume:
    """Means of whole voxels that stay finer than a spacing, before resampling to that spacing.

    What is left to smooth takes an eighth of the work.
    """
    factors = np.maximum(1, spacing_mm / volume.grid.spacing / 1.4).astype(int)
    factors = np.minimum(factors, volume.data.shape)
    if factors.max() == 1:
        return volume
    means = sitk.BinShrink(to_sitk(volume.data, volume.grid), factors.tolist())
    data, grid = from_sitk(means)
    return replace(volume, data=data, grid=grid)


def blurred(volume: Volume, spacing_mm: Float[np.ndarray, " 3"]) -> Volume:
    """A volume of the resolution that voxels of a coarser spacing have, on its own grid.

    What `resample_to_grid` does before it samples, for many samplings of one volume.
    """
    image = to_sitk(volume.data, volume.grid)
    data, _ = from_sitk(_without_aliases(image, spacing_mm / volume.grid.spacing))
    return replace(volume, data=data)


def outside_value(volume: Volume, interpolation: Interpolation) -> float:
    """What a sample outside the volume is: its background, or label 0."""
    return 0.0 if interpolation == "nearest" else background_of(volume.data)


def _step_in_voxels(
    source: Grid, target: Grid, transform: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, " 3"]:
    """How far one target voxel reaches along each source axis, in source voxels.

    The row norm is the scale factor whatever the rotation between the two.
    """
    target_to_source = source.world_to_index @ transform @ target.affine
    return np.linalg.norm(target_to_source[:3, :3], axis=1)


def _without_aliases(image: sitk.Image, step: Float[np.ndarray, " 3"]) -> sitk.Image:
    sigma = np.sqrt(np.maximum(0.0, step**2 - 1)) / FWHM
    if sigma.max() < 0.1:  # a tenth of a voxel changes no sample visibly
        return image
    # ITK's discrete kernel stays exact below one voxel, where its recursive one does not.
    return sitk.DiscreteGaussian(image, (sigma**2).tolist(), 32, 0.01, False)

"""Mattes mutual information, maximised over an affine by gradient steps at one resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..geometry.spaces import Grid, flip_vectors, itk_affine, to_sitk

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from .copies import Copy

HISTOGRAM_BINS = 32
# Sampled points are moved within their voxels, by the same random amounts every time.
SEED = 1


def initial_transform(
    kind: str, start: Float[np.ndarray, "4 4"], centre: Float[np.ndarray, " 3"]
) -> sitk.Transform:
    """An ITK transform of this kind that starts as `start` and turns about a centre (RAS)."""
    itk_start = itk_affine(start)
    transform: Any = {
        "rigid": sitk.Euler3DTransform(),
        "similarity": sitk.Similarity3DTransform(),
        "affine": sitk.AffineTransform(3),
    }[kind]
    itk_centre = flip_vectors(centre)
    transform.SetCenter(itk_centre.tolist())
    transform.SetMatrix(itk_start.GetMatrix())
    moved = np.array(itk_start.TransformPoint(itk_centre.tolist()))
    transform.SetTranslation((moved - itk_centre).tolist())
    return transform


def optimise(
    moving: Copy,
    fixed: Copy,
    transform: sitk.Transform,
    first_step_mm: float,
    share: float,
    then: sitk.Transform | None,
) -> None:
    """Improve `transform` in place.

    Args:
        moving: Small copy.
        fixed: Small copy; its voxels near the foreground are compared.
        transform: Fixed → moving, from `initial_transform`.
        first_step_mm: Of the gradient descent, which ends at a tenth of it.
        share: Of the voxels to compare.
        then: Applied after `transform`, unchanged; None is nothing.
    """
    method = sitk.ImageRegistrationMethod()
    if then is not None:
        method.SetMovingInitialTransform(then)
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    if share < 1:
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(share, SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricFixedMask(_itk_mask(fixed.near_foreground(), fixed.image.grid))
    if moving.hole is not None:
        method.SetMetricMovingMask(_itk_mask(moving.hole.data == 0, moving.image.grid))
    # Relaxing the step slowly is what recovers shears: halving it, as is usual, stops up to seven
    # times farther from a known affine, in nearly the same time.
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=first_step_mm,
        minStep=first_step_mm / 10,
        numberOfIterations=200,
        relaxationFactor=0.9,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(*(to_sitk(copy.image.data, copy.image.grid) for copy in (fixed, moving)))


def _itk_mask(mask: Bool[np.ndarray, "i j k"], grid: Grid) -> sitk.Image:
    return to_sitk(mask.astype(np.uint8), grid)

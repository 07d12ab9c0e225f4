"""Affine alignment of the moving to the fixed image, found on small copies of both."""

from __future__ import annotations

import logging
import math
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np
import SimpleITK as sitk

from .errors import AlignmentError
from .preprocess import foreground_box, foreground_threshold, resample_to_grid
from .spaces import Grid, affine_from_itk, itk_affine, to_sitk
from .threads import itk_threads
from .volume import Volume

if TYPE_CHECKING:
    from jaxtyping import Float

AffineKind = Literal["auto", "rigid", "similarity", "affine"]

log = logging.getLogger(__name__)

# Voxels across the fixed foreground at the two levels: 6 mm and 3 mm for an adult brain, and as
# fine in proportion for a mouse's. The coarse level has the capture range, the fine one the
# accuracy; a finer one takes longer and aligned brains no better.
COARSE_VOXELS, FINE_VOXELS = 25, 50
HISTOGRAM_BINS = 32
# Two cut-outs have to share this much of the smaller one after the search.
SMALLEST_OVERLAP = 0.6
# The search itself finds its way from about 25 degrees off.
ROTATION_RAD = math.radians(25)


def align_affine(
    moving: Volume,
    fixed: Volume,
    kind: AffineKind = "auto",
    initial: Float[np.ndarray, "4 4"] | None = None,
) -> Float[np.ndarray, "4 4"]:
    """Find the affine that makes the moving image most like the fixed one.

    Starts with the foregrounds' centres of gravity upon each other, then maximises Mattes mutual
    information, which does not ask for equal contrast, at two resolutions. All
    voxels of the small copies are used, so equal input gives equal output.

    Whole organs and heads get all 12 parameters, from rotations up to 45 degrees off. A cut-out
    of a larger body (foreground all around its border) gets a rigid transform: its size cannot be
    told from a zoom, and free scales then shrink towards whatever small part looks alike.

    Args:
        moving: Image on its own grid.
        fixed: Image on its own grid.
        kind: Rotation and translation ("rigid"), with one scale ("similarity") or all 12
            parameters ("affine"); "auto" decides as above.
        initial: Fixed world mm → moving world mm (RAS), where the search starts instead of at the
            centres of gravity and without trying rotations. The result contains it, so with
            `kind` "rigid" it is rigid after `initial`, whatever that is.

    Returns:
        Fixed world mm → moving world mm (RAS). If the search made the images less alike, the
        start, and a warning is logged.

    Raises:
        AlignmentError: The search left no overlap of the two images.
    """
    # The coarse copies are made from the fine ones, which is as good and needs no wide kernels.
    size_mm = _foreground_size_mm(fixed)
    fine_mm, coarse_mm = size_mm / FINE_VOXELS, size_mm / COARSE_VOXELS
    fine_fixed, fine_moving = _shrunk(fixed, fine_mm), _shrunk(moving, fine_mm)
    coarse_fixed, coarse_moving = _shrunk(fine_fixed, coarse_mm), _shrunk(fine_moving, coarse_mm)
    moving_centre = _itk_centre(fine_moving)
    cut_outs = _is_cut_out(moving), _is_cut_out(fixed)
    cut_out = any(cut_outs)
    if all(cut_outs):
        fine_moving, coarse_moving = _surrounded(fine_moving), _surrounded(coarse_moving)
    if kind == "auto":
        kind = "rigid" if cut_out else "affine"
    start = _centred_start(moving_centre, fine_fixed, initial)
    then = None if initial is None else itk_affine(initial)
    try:
        # Threads add up the histogram in any order; one gives the same bits every time, and on
        # the small copies it is faster as well.
        with itk_threads(1):
            search = not (cut_out or then)
            angles = _best_rotation(coarse_moving, coarse_fixed, start) if search else (0.0,) * 3
            transform = _of_kind(kind, start, angles)
            _climb(coarse_moving, coarse_fixed, transform, coarse_mm / 3, then)
            _climb(fine_moving, fine_fixed, transform, fine_mm / 6, then)
            before, after = (
                _similarity(fine_moving, fine_fixed, t, then) for t in (start, transform)
            )
    except RuntimeError as err:
        raise AlignmentError(
            f"{moving.name}: expected an affine that aligns it with {fixed.name}, got no overlap "
            "during the search; check that both show the same anatomy, or align them first and "
            "pass --no-affine."
        ) from err
    if after < before:
        log.warning(
            "%s: the affine search made it less like %s (mutual information %.3f → %.3f), so only "
            "their centres are aligned; check the result.",
            *(moving.name, fixed.name, before, after),
        )
        transform = start
    found = affine_from_itk(transform)
    complete = found if initial is None else initial @ found
    overlap = max(
        _share_inside(moving.grid, fixed.grid, complete),
        _share_inside(fixed.grid, moving.grid, np.linalg.inv(complete)),
    )
    if all(cut_outs) and overlap < SMALLEST_OVERLAP:
        log.warning(
            "%s: the affine search left it only %.0f %% in common with %s, so only their centres "
            "are aligned; check the result.",
            *(moving.name, 100 * overlap, fixed.name),
        )
        found = affine_from_itk(start)
        complete = found if initial is None else initial @ found
    return complete


def _foreground_size_mm(volume: Volume) -> float:
    """Side of the cube with the volume of the foreground's box."""
    lo, hi = foreground_box(volume)
    return float(np.prod(np.subtract(hi, lo) * volume.grid.spacing) ** (1 / 3))


def _is_cut_out(volume: Volume) -> bool:
    """Whether most of the image's border shows foreground."""
    mask = volume.data > foreground_threshold(volume.data)
    inner = mask[1:-1, 1:-1, 1:-1]
    border = np.count_nonzero(mask) - np.count_nonzero(inner)
    return bool(border > 0.5 * (mask.size - inner.size))


def _shrunk(volume: Volume, spacing_mm: float) -> Volume:
    """A copy of the foreground and its surroundings, at about the given spacing.

    Axes that are coarser already keep their spacing. Nothing beyond the image is included: its
    edges in both copies would match each other instead of the anatomy.
    """
    lo, hi = (np.array(side) for side in foreground_box(volume))
    spacing = np.maximum(volume.grid.spacing, spacing_mm)
    margin = np.ceil(2 * spacing / volume.grid.spacing).astype(int)
    lo, hi = np.maximum(lo - margin, 0), np.minimum(hi + margin, volume.grid.shape)
    shape = np.maximum(((hi - lo) * volume.grid.spacing / spacing).astype(int), 4)
    affine = np.eye(4)
    affine[:3, :3] = volume.grid.directions * spacing
    affine[:3, 3] = volume.grid.world((lo + hi - 1) / 2) - affine[:3, :3] @ ((shape - 1) / 2)
    grid = Grid(tuple(shape), affine)
    return Volume(resample_to_grid(volume, grid), grid, volume.name)


def _surrounded(volume: Volume) -> Volume:
    """The volume inside a wide frame of its median.

    Mutual information counts what lies inside both images, and a small overlap is easily alike: the
    frame makes leaving the moving image cost something. The fixed image has none, so its edge
    cannot match the frame's.
    """
    width = [n // 2 for n in volume.data.shape]
    outside = float(np.median(volume.data))
    data = np.pad(volume.data, [(w, w) for w in width], constant_values=outside)
    affine = volume.grid.affine.copy()
    affine[:3, 3] = volume.grid.world(-np.array(width))
    return Volume(data, Grid(data.shape, affine), volume.name)


def _share_inside(moving: Grid, fixed: Grid, affine: Float[np.ndarray, "4 4"]) -> float:
    """Share of the fixed grid's voxels that lie inside the moving one, after the affine."""
    index = np.stack(np.meshgrid(*[np.arange(0, n, 4) for n in fixed.shape], indexing="ij"), -1)
    to_index = np.linalg.inv(moving.affine) @ affine
    at = fixed.world(index.reshape(-1, 3)) @ to_index[:3, :3].T + to_index[:3, 3]
    inside = (at >= -0.5) & (at <= np.array(moving.shape) - 0.5)
    return float(inside.all(axis=1).mean())


def _centred_start(
    moving_centre: Float[np.ndarray, " 3"], fixed: Volume, initial: Float[np.ndarray, "4 4"] | None
) -> sitk.AffineTransform:
    """No rotation; the translation of the centres, unless `initial` stands for it."""
    fixed_centre = _itk_centre(fixed)
    start = sitk.AffineTransform(3)
    # Turning about the centre keeps rotation and translation independent in the search.
    start.SetCenter(fixed_centre.tolist())
    if initial is None:
        start.SetTranslation((moving_centre - fixed_centre).tolist())
    return start


def _itk_centre(volume: Volume) -> Float[np.ndarray, " 3"]:
    """Centre of gravity of the foreground in ITK's world."""
    index = np.argwhere(volume.data > foreground_threshold(volume.data)).mean(axis=0)
    image = to_sitk(volume.data, volume.grid)
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))


def _best_rotation(moving: Volume, fixed: Volume, start: sitk.AffineTransform) -> tuple[float, ...]:
    """The most similar of 27 rotations about the centre, for the search to climb from."""
    return max(
        product((0.0, -ROTATION_RAD, ROTATION_RAD), repeat=3),
        key=lambda angles: _similarity(moving, fixed, _of_kind("rigid", start, angles)),
    )


def _of_kind(
    kind: AffineKind, start: sitk.AffineTransform, angles_rad: tuple[float, ...]
) -> sitk.Transform:
    """A transform with the centre and translation of `start`, turned."""
    rigid = sitk.Euler3DTransform(start.GetCenter(), *angles_rad, start.GetTranslation())
    if kind == "rigid":
        return rigid
    result = sitk.AffineTransform(start) if kind == "affine" else sitk.Similarity3DTransform()
    result.SetCenter(start.GetCenter())
    result.SetTranslation(start.GetTranslation())
    result.SetMatrix(rigid.GetMatrix())
    return result


def _climb(
    moving: Volume,
    fixed: Volume,
    transform: sitk.Transform,
    first_step_mm: float,
    then: sitk.Transform | None,
) -> None:
    """Improve `transform` in place at one level; steps are in mm of voxel movement."""
    method = _metric(fixed, then)
    # Shrinking the step slowly at each turn is what brings shears home: halving it, as is usual,
    # stops up to seven times farther away on a known affine, in nearly the same time.
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=first_step_mm,
        minStep=first_step_mm / 10,
        numberOfIterations=200,
        relaxationFactor=0.9,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(transform, inPlace=True)
    method.Execute(to_sitk(fixed.data, fixed.grid), to_sitk(moving.data, moving.grid))


def _similarity(
    moving: Volume, fixed: Volume, transform: sitk.Transform, then: sitk.Transform | None = None
) -> float:
    method = _metric(fixed, then)
    method.SetInitialTransform(transform)
    images = to_sitk(fixed.data, fixed.grid), to_sitk(moving.data, moving.grid)
    return -method.MetricEvaluate(*images)


def _metric(fixed: Volume, then: sitk.Transform | None) -> sitk.ImageRegistrationMethod:
    """The similarity after a transform and, if given, another that stays."""
    method = sitk.ImageRegistrationMethod()
    if then is not None:
        method.SetMovingInitialTransform(then)
    method.SetMetricAsMattesMutualInformation(HISTOGRAM_BINS)
    method.SetInterpolator(sitk.sitkLinear)
    # Two voxels around the foreground show the metric its edge; more background only dilutes it.
    mask = (fixed.data > foreground_threshold(fixed.data)).astype(np.uint8)
    method.SetMetricFixedMask(sitk.BinaryDilate(to_sitk(mask, fixed.grid), [2, 2, 2]))
    return method

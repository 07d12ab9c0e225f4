"""Affine alignment of the moving to the fixed image, found on small copies of both."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import SimpleITK as sitk
from nibabel.affines import from_matvec

from ..errors import AlignmentError
from ..geometry.resample import resample_to_grid
from ..geometry.spaces import Grid, affine_from_itk, flip_vectors, from_sitk, itk_affine, to_sitk
from ..images.volume import Volume
from ..quality.flags import Flag
from ..system.threads import itk_threads
from .foreground import foreground_box, foreground_threshold, hole_of, masked
from .pose import MutualInformation, find_pose

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

AffineKind = Literal["auto", "rigid", "similarity", "affine"]

log = logging.getLogger(__name__)

# Names of what the search warns of, which it logs itself.
FLAGS = ("astray", "overlap", "unlike")
# Voxels across the foreground at the levels: 10, 6 and 3 mm for an adult brain, and as fine in
# proportion for a mouse's. The first has the capture range, the last the accuracy; a finer one
# takes longer and aligned brains no better.
POSE_VOXELS, COARSE_VOXELS, FINE_VOXELS = 14, 25, 50
# The moving image stays sharper at the last, because interpolating it blurs it once more.
SHARP_VOXELS = 80
HISTOGRAM_BINS = 32
# Of the points at the last level, about every third; each moved within its voxel by a random
# number that is the same every time. All of them take longer and align no better.
FINE_SHARE = 0.34
SEED = 1
# The two foregrounds have to share this much of the smaller one.
SMALLEST_OVERLAP = 0.6
# The moving image has to tell this share of what there is to tell of the fixed one. Aligned brains
# tell more, whatever is cut off (benchmarks/affine.py), and less where one is upside down. Cut-outs
# of a body are less alike even when aligned; the bound is for what has nothing in common.
LEAST_TOLD, LEAST_TOLD_BY_CUT_OUT = 0.15, 0.01


@dataclass(frozen=True, eq=False)
class Alignment:
    """An affine, and how much more alike it makes the images.

    Attributes:
        affine: Fixed world mm → moving world mm (RAS).
        kind: "rigid", "similarity" or "affine".
        information_before: Mutual information (nats) of the small copies where the images lay
            before the search; what lies beyond the moving image tells nothing.
        information_after: The same with `affine`.
        told: Share of all information on the fixed image that the moving one tells, where both are.
        overlap: Share of the smaller foreground that lies upon the other.
        flags: What looks wrong.
    """

    affine: Float[np.ndarray, "4 4"]
    kind: str
    information_before: float
    information_after: float
    told: float
    overlap: float
    flags: tuple[Flag, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What looks wrong, a sentence each."""
        return tuple(flag.sentence for flag in self.flags)

    def as_metrics(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "kind": self.kind,
            "mutual_information": {
                "before": round(self.information_before, 6),
                "after": round(self.information_after, 6),
            },
            "told_share": round(self.told, 6),
            "foreground_overlap": round(self.overlap, 6),
        }


def align_affine(
    moving: Volume,
    fixed: Volume,
    kind: AffineKind = "auto",
    initial: Float[np.ndarray, "4 4"] | None = None,
    *,
    moving_mask: Volume | None = None,
    fixed_mask: Volume | None = None,
) -> Alignment:
    """Find the affine that makes the moving image most like the fixed one.

    Many rotations and sizes are tried on tiny copies; from the best, Mattes mutual information,
    which does not ask for equal contrast, is maximised at two resolutions. Equal input gives equal
    output: the points that are compared are the same every time.

    Whole organs and heads get all 12 parameters, from rotations up to 60 degrees off, whatever
    their size and place. A cut-out of a larger body (foreground all around its border) gets a rigid
    transform from the centres upon each other: its size cannot be told from a zoom, and free scales
    then shrink towards whatever small part looks alike.

    Args:
        moving: Image on its own grid.
        fixed: Image on its own grid.
        kind: Rotation and translation ("rigid"), with one scale ("similarity") or all 12
            parameters ("affine"); "auto" decides as above.
        initial: Fixed world mm → moving world mm (RAS), where the search starts instead of trying
            poses. The result contains it, so with `kind` "rigid" it is rigid after `initial`,
            whatever that is.
        moving_mask: On the grid of `moving`; where it is 0 the image is background, but for holes,
            which are left out of all comparison (see `hole_of`).
        fixed_mask: The same for `fixed`.

    Returns:
        The alignment; if the search made the images less alike, how it started or how they lay.
        Its warnings are logged as well.

    Raises:
        AlignmentError: The search left no overlap of the two images.
        VolumeError: A mask without any of its image's foreground.
    """
    moving, fixed = masked(moving, moving_mask), masked(fixed, fixed_mask)
    cut_outs = _is_cut_out(moving), _is_cut_out(fixed)
    if kind == "auto":
        kind = "rigid" if any(cut_outs) else "affine"
    copies = _Copies(_Side(moving, hole_of(moving_mask)), _Side(fixed, hole_of(fixed_mask)))
    lay = np.eye(4) if initial is None else initial
    if initial is not None:
        start = initial
    elif any(cut_outs):
        start = copies.centred()
    else:
        start = copies.best_pose(keep_size=kind == "rigid")
    try:
        found = copies.climbed(kind, start, initial, frame=all(cut_outs))
    except RuntimeError as err:
        raise AlignmentError(
            f"{moving.name}: expected an affine that aligns it with {fixed.name}, got no overlap "
            "during the search; check that both show the same anatomy, or align them first and "
            "pass --no-affine."
        ) from err
    # A cut-out whose search drifted away says so by its overlap: little is easily alike.
    candidates = [found, start, lay]
    if all(cut_outs):
        enough = [c for c in candidates if copies.overlap(c) >= SMALLEST_OVERLAP]
        candidates = enough or [start]
    chosen = max(candidates, key=copies.information)
    least_told = LEAST_TOLD_BY_CUT_OUT if any(cut_outs) else LEAST_TOLD
    drifted = all(other is not found for other in candidates)
    # Where the images lay well, the search ends beside that by less than its last step.
    went_astray = drifted or copies.information(found) < 0.98 * copies.information(chosen)
    return copies.judged(chosen, lay, kind, least_told, went_astray)


def agreement(warped: Volume, fixed: Volume) -> tuple[float, float]:
    """How far two images that lie upon each other agree, seen on small copies.

    Args:
        warped: Image in the place of `fixed`.
        fixed: Image on its own grid.

    Returns:
        The share of all information on the fixed image that the other one tells, 0 to 1, whatever
        the two contrasts, and the Dice overlap of both foregrounds.
    """
    fixed_side = _Side(fixed)
    spacing_mm = fixed_side.size_mm / FINE_VOXELS
    target, image = fixed_side.shrunk(spacing_mm), _Side(warped).shrunk(spacing_mm / 2)
    told = _information(image, target).share(np.eye(4))
    mask = Volume(image.foreground.astype(np.uint8), image.image.grid)
    there = resample_to_grid(mask, target.image.grid, None, "nearest") != 0
    common = np.count_nonzero(there & target.foreground)
    whole = np.count_nonzero(target.foreground) + image.foreground_mm3 / float(
        np.prod(target.image.grid.spacing)
    )
    return told, float(2 * common / whole)


@dataclass(frozen=True, eq=False)
class _Side:
    """One of the two images; nobody knows what is in its hole."""

    image: Volume
    hole: Volume | None = None

    @property
    def foreground(self) -> Bool[np.ndarray, "i j k"]:
        return self.image.data > foreground_threshold(self.image.data)

    @property
    def centre(self) -> Float[np.ndarray, " 3"]:
        """Centre of gravity of the foreground, world mm (RAS)."""
        return self.image.grid.world(np.argwhere(self.foreground).mean(axis=0))

    @property
    def foreground_mm3(self) -> float:
        return float(np.count_nonzero(self.foreground) * np.prod(self.image.grid.spacing))

    @property
    def size_mm(self) -> float:
        """Side of the cube with the volume of the foreground's box."""
        lo, hi = foreground_box(self.image)
        return float(np.prod(np.subtract(hi, lo) * self.image.grid.spacing) ** (1 / 3))

    def near_foreground(self) -> Bool[np.ndarray, "i j k"]:
        """Two voxels around it show a metric its edge; more background only dilutes it."""
        grid = self.image.grid
        grown = sitk.BinaryDilate(to_sitk(self.foreground.astype(np.uint8), grid), [2, 2, 2])
        near = from_sitk(grown)[0].astype(bool)
        return near if self.hole is None else near & (self.hole.data == 0)

    def shrunk(self, spacing_mm: float) -> _Side:
        """A copy of the foreground and its surroundings, at about the given spacing.

        Axes that are coarser already keep their spacing. Nothing beyond the image is included: its
        edges in both copies would match each other instead of the anatomy.
        """
        image = self.image
        lo, hi = (np.array(side) for side in foreground_box(image))
        spacing = np.maximum(image.grid.spacing, spacing_mm)
        margin = np.ceil(2 * spacing / image.grid.spacing).astype(int)
        lo, hi = np.maximum(lo - margin, 0), np.minimum(hi + margin, image.grid.shape)
        shape = np.maximum(((hi - lo) * image.grid.spacing / spacing).astype(int), 4)
        centre = image.grid.world((lo + hi - 1) / 2)
        grid = Grid.from_spacing(shape, spacing, image.grid.directions, centre=centre)
        small = resample_to_grid(_averaged(image, lo, hi, spacing), grid)
        hole = self.hole and Volume(
            resample_to_grid(self.hole, grid, interpolation="nearest"), grid, self.hole.name
        )
        return _Side(Volume(small, grid, image.name), hole)

    def framed(self) -> _Side:
        """The image inside a wide frame of its median.

        Mattes mutual information counts what lies inside both images, and a small overlap is easily
        alike: the frame makes leaving the moving image cost something. The fixed image has none, so
        its edge cannot match the frame's.
        """
        width = [n // 2 for n in self.image.data.shape]
        grid = self.image.grid.padded(width)

        def padded(volume: Volume, value: float) -> Volume:
            data = np.pad(volume.data, [(w, w) for w in width], constant_values=value)
            return Volume(data, grid, volume.name)

        image = padded(self.image, float(np.median(self.image.data)))
        return _Side(image, self.hole and padded(self.hole, 0))


class _Copies:
    """Both images, small, and what can be asked of them."""

    def __init__(self, moving: _Side, fixed: _Side) -> None:
        self.sizes_mm = moving.size_mm, fixed.size_mm
        # As fine as the smaller of the two needs; a far larger moving image shows more than that.
        finest_mm = min(self.sizes_mm)
        self.fine = (
            moving.shrunk(finest_mm / SHARP_VOXELS),
            fixed.shrunk(self.sizes_mm[1] / FINE_VOXELS),
        )
        # Coarser copies are made from finer ones, which is as good and needs no wide kernels.
        self.coarse = (
            self.fine[0].shrunk(finest_mm / COARSE_VOXELS),
            self.fine[1].shrunk(self.sizes_mm[1] / COARSE_VOXELS),
        )
        self.information = _information(*self.fine)

    def centred(self) -> Float[np.ndarray, "4 4"]:
        """The foregrounds' centres of gravity upon each other."""
        moving, fixed = self.fine
        return from_matvec(np.eye(3), moving.centre - fixed.centre)

    def best_pose(self, keep_size: bool) -> Float[np.ndarray, "4 4"]:
        """Turned, moved and, unless `keep_size`, scaled so that the images become alike."""
        moving, fixed = self.fine
        information = _information(
            moving.shrunk(self.sizes_mm[0] / (2 * POSE_VOXELS)),
            fixed.shrunk(self.sizes_mm[1] / POSE_VOXELS),
        )
        log_scale = math.log(moving.foreground_mm3 / fixed.foreground_mm3) / 3
        return find_pose(
            information,
            *(moving.centre, fixed.centre, self.sizes_mm[0]),
            None if keep_size else log_scale,
        )

    def climbed(
        self,
        kind: AffineKind,
        start: Float[np.ndarray, "4 4"],
        initial: Float[np.ndarray, "4 4"] | None,
        frame: bool,
    ) -> Float[np.ndarray, "4 4"]:
        """The affine of this kind to which Mattes mutual information climbs from the start."""
        then = None if initial is None else itk_affine(initial)
        own_start = start if initial is None else np.eye(4)
        # Turning about the centre keeps rotation and translation independent in the search.
        transform = _of_kind(kind, own_start, self.fine[1].centre)
        size_mm = self.sizes_mm[1]
        levels = (
            (self.coarse, size_mm / COARSE_VOXELS / 3, 1.0),
            (self.fine, size_mm / FINE_VOXELS / 6, FINE_SHARE),
        )
        # Threads add up the histogram in any order; one gives the same bits every time, and on
        # the small copies it is faster as well.
        with itk_threads(1):
            for (moving, fixed), first_step_mm, share in levels:
                moving = moving.framed() if frame else moving
                _climb(moving, fixed, transform, first_step_mm, share, then)
        found = affine_from_itk(transform)
        return found if initial is None else initial @ found

    def overlap(self, affine: Float[np.ndarray, "4 4"]) -> float:
        """Share of the smaller foreground that lies upon the other."""
        moving, fixed = self.fine
        mask = Volume(moving.foreground.astype(np.uint8), moving.image.grid)
        on_fixed = resample_to_grid(mask, fixed.image.grid, affine, "nearest") != 0
        common = np.count_nonzero(on_fixed & fixed.foreground)
        moving_mm3 = moving.foreground_mm3 / abs(np.linalg.det(affine[:3, :3]))
        smaller = min(moving_mm3, fixed.foreground_mm3) / np.prod(fixed.image.grid.spacing)
        return min(1.0, float(common / smaller))

    def judged(
        self,
        chosen: Float[np.ndarray, "4 4"],
        lay: Float[np.ndarray, "4 4"],
        kind: AffineKind,
        least_told: float,
        went_astray: bool,
    ) -> Alignment:
        """The chosen affine with what it is worth; logs what looks wrong."""
        moving, fixed = (side.image.name for side in self.fine)
        overlap, told = self.overlap(chosen), self.information.share(chosen)
        doubts = (
            (
                FLAGS[0],
                went_astray,
                f"the affine search went astray (less like {fixed} than before, or off it), so "
                "that the better of how it started and how the images lay is kept",
                (None, None),
            ),
            (
                FLAGS[1],
                overlap < SMALLEST_OVERLAP,
                f"only {100 * overlap:.0f} % of its foreground lies upon that of {fixed} after the "
                "affine alignment",
                (overlap, SMALLEST_OVERLAP),
            ),
            (
                FLAGS[2],
                told < least_told,
                f"after the affine alignment it is hardly like {fixed} (it tells "
                f"{100 * told:.1f} % of what there is to tell, usually at least "
                f"{100 * least_told:g} %)",
                (told, least_told),
            ),
        )
        flags = tuple(
            Flag(name, "pair", f"{moving}: {doubt}; check the result.", *numbers)
            for name, applies, doubt, numbers in doubts
            if applies
        )
        for flag in flags:
            log.warning("%s", flag.sentence)
        before, after = self.information(lay), self.information(chosen)
        return Alignment(chosen, kind, before, after, told, overlap, flags)


def _is_cut_out(volume: Volume) -> bool:
    """Whether most of the image's border shows foreground."""
    mask = volume.data > foreground_threshold(volume.data)
    inner = mask[1:-1, 1:-1, 1:-1]
    border = np.count_nonzero(mask) - np.count_nonzero(inner)
    return bool(border > 0.5 * (mask.size - inner.size))


def _averaged(
    image: Volume,
    lo: Float[np.ndarray, " 3"],
    hi: Float[np.ndarray, " 3"],
    spacing_mm: Float[np.ndarray, " 3"],
) -> Volume:
    """The box of the image, in means of whole voxels that stay finer than the given spacing.

    What is left to smooth takes an eighth of the work.
    """
    box = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
    cropped = Volume(image.data[box], image.grid.cropped(lo, hi), image.name)
    factors = np.maximum(1, spacing_mm / image.grid.spacing / 1.4).astype(int)
    if factors.max() == 1:
        return cropped
    means = sitk.BinShrink(to_sitk(cropped.data, cropped.grid), factors.tolist())
    return Volume(*from_sitk(means), image.name)


def _information(moving: _Side, fixed: _Side) -> MutualInformation:
    known = None if moving.hole is None else moving.hole.data == 0
    return MutualInformation(moving.image, fixed.image, fixed.near_foreground(), known)


def _of_kind(
    kind: AffineKind, start: Float[np.ndarray, "4 4"], centre: Float[np.ndarray, " 3"]
) -> sitk.Transform:
    """An ITK transform of this kind that does what `start` does, about a centre (RAS)."""
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


def _climb(
    moving: _Side,
    fixed: _Side,
    transform: sitk.Transform,
    first_step_mm: float,
    share: float,
    then: sitk.Transform | None,
) -> None:
    """Improve `transform` in place at one level, by steps in mm and a share of the voxels."""
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
    method.Execute(*(to_sitk(side.image.data, side.image.grid) for side in (fixed, moving)))


def _itk_mask(mask: Bool[np.ndarray, "i j k"], grid: Grid) -> sitk.Image:
    return to_sitk(mask.astype(np.uint8), grid)

"""Affine alignment of the moving to the fixed image, by mutual information of small copies."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from nibabel.affines import from_matvec

from ..errors import AlignmentError
from ..geometry.resample import resample_to_grid
from ..geometry.spaces import affine_from_itk, itk_affine
from ..images.volume import Volume
from ..quality.flags import Flag
from ..system.threads import itk_threads
from .copies import Copy
from .foreground import MaskedImage, foreground_of
from .optimisation import initial_transform, optimise
from .pose import MutualInformation, find_pose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float

AffineKind = Literal["auto", "rigid", "similarity", "affine"]

log = logging.getLogger(__name__)

# Names of the warnings of the search, which it logs itself.
FLAGS = ("search_failed", "overlap", "unlike")
# Voxels across the foreground at the levels: 10, 6 and 3 mm for an adult brain, and as fine in
# proportion for a mouse's. The first has the capture range, the last the accuracy; a finer one
# takes longer and aligned brains no better.
POSE_VOXELS, COARSE_VOXELS, FINE_VOXELS = 14, 25, 50
# The moving image stays sharper at the last, because interpolating it blurs it once more.
SHARP_VOXELS = 80
# Of the points at the last level, about every third. All of them take longer and align no better.
FINE_SHARE = 0.34
# The two foregrounds have to share this much of the smaller one.
SMALLEST_OVERLAP = 0.6
# The least uncertainty coefficient. Aligned brains reach more, whatever is cut off
# (benchmarks/affine.py), and less where one is upside down. Cut-outs of a body are less alike even
# when aligned; their bound is for images that have nothing in common.
LEAST_COEFFICIENT, LEAST_OF_CUT_OUTS = 0.15, 0.01


@dataclass(frozen=True, eq=False)
class Alignment:
    """An affine, and how much more alike it makes the images.

    Attributes:
        affine: Fixed world mm → moving world mm (RAS).
        kind: "rigid", "similarity" or "affine".
        information_before: Mutual information (nats) of the small copies before the search; points
            outside the moving image add nothing.
        information_after: The same with `affine`.
        uncertainty_coefficient: Of the fixed image given the moving one, 0 to 1, where both are:
            mutual information as a share of the fixed image's entropy.
        overlap: Share of the smaller foreground that lies upon the other.
        flags: What looks wrong.
    """

    affine: Float[np.ndarray, "4 4"]
    kind: str
    information_before: float
    information_after: float
    uncertainty_coefficient: float
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
            "uncertainty_coefficient": round(self.uncertainty_coefficient, 6),
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

    Whole organs and heads get all 12 parameters, from rotations up to 60 degrees, whatever their
    size and position. A cut-out of a larger body (foreground all around its border) gets a rigid
    transform that starts with both centres aligned: its size cannot be distinguished from a zoom,
    and free scales would shrink towards whatever small part looks alike.

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
        The alignment; if the search made the images less alike, the better of its start and their
        original position. Its warnings are logged as well.

    Raises:
        AlignmentError: The search left no overlap of the two images.
        VolumeError: A mask without any of its image's foreground.
    """
    pair = MaskedImage(moving, moving_mask), MaskedImage(fixed, fixed_mask)
    return align_masked(*pair, kind, initial)


def align_masked(
    moving: MaskedImage,
    fixed: MaskedImage,
    kind: AffineKind = "auto",
    initial: Float[np.ndarray, "4 4"] | None = None,
) -> Alignment:
    """`align_affine` of images with their masks."""
    cut_outs = _is_cut_out(moving.image), _is_cut_out(fixed.image)
    if kind == "auto":
        kind = "rigid" if any(cut_outs) else "affine"
    copies = _Copies(*(Copy(image.image, image.hole) for image in (moving, fixed)))
    original = np.eye(4) if initial is None else initial
    if initial is not None:
        start = initial
    elif any(cut_outs):
        start = copies.centred()
    else:
        start = copies.best_pose(keep_size=kind == "rigid")
    try:
        optimum = copies.optimum(kind, start, initial, frame=all(cut_outs))
    except RuntimeError as err:
        raise AlignmentError(
            f"{moving.volume.name}: expected an affine that aligns it with {fixed.volume.name}, "
            "got no overlap during the search; check that both show the same anatomy, or align "
            "them first and pass --no-affine."
        ) from err
    candidates = [optimum, start, original]
    if all(cut_outs):  # the little that two cut-outs share when they drift apart is easily alike
        candidates = [c for c in candidates if copies.overlap(c) >= SMALLEST_OVERLAP] or [start]
    chosen = max(candidates, key=copies.information)
    drifted = all(other is not optimum for other in candidates)
    # Of images that were aligned before, the search ends within its last step of that.
    failed = drifted or copies.information(optimum) < 0.98 * copies.information(chosen)
    least = LEAST_OF_CUT_OUTS if any(cut_outs) else LEAST_COEFFICIENT
    return copies.assessed(chosen, original, kind, least, failed)


def agreement(warped: Volume, fixed: Volume) -> tuple[float, float]:
    """How well two aligned images agree, measured on small copies.

    Args:
        warped: Image in the place of `fixed`.
        fixed: Image on its own grid.

    Returns:
        The uncertainty coefficient of the fixed image given the warped one, 0 to 1, whatever the
        two contrasts, and the Dice overlap of both foregrounds.
    """
    spacing_mm = Copy(fixed).size_mm / FINE_VOXELS
    target, image = Copy(fixed).shrunk(spacing_mm), Copy(warped).shrunk(spacing_mm / 2)
    coefficient = _information(image, target).uncertainty_coefficient(np.eye(4))
    mask = Volume(image.foreground.astype(np.uint8), image.image.grid)
    there = resample_to_grid(mask, target.image.grid, None, "nearest") != 0
    common = np.count_nonzero(there & target.foreground)
    whole = np.count_nonzero(target.foreground) + image.foreground_mm3 / float(
        np.prod(target.image.grid.spacing)
    )
    return coefficient, float(2 * common / whole)


class _Copies:
    """Small copies of both images, and what is measured and searched on them."""

    def __init__(self, moving: Copy, fixed: Copy) -> None:
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
        """The translation that aligns the foregrounds' centres of gravity."""
        moving, fixed = self.fine
        return from_matvec(np.eye(3), moving.centre - fixed.centre)

    def best_pose(self, keep_size: bool) -> Float[np.ndarray, "4 4"]:
        """The best of many rotations, translations and, unless `keep_size`, scales."""
        moving, fixed = self.fine
        information = _information(
            moving.shrunk(self.sizes_mm[0] / (2 * POSE_VOXELS)),
            fixed.shrunk(self.sizes_mm[1] / POSE_VOXELS),
        )
        log_scale = math.log(moving.foreground_mm3 / fixed.foreground_mm3) / 3
        return find_pose(
            information,
            moving.centre,
            fixed.centre,
            self.sizes_mm[0],
            None if keep_size else log_scale,
        )

    def optimum(
        self,
        kind: AffineKind,
        start: Float[np.ndarray, "4 4"],
        initial: Float[np.ndarray, "4 4"] | None,
        frame: bool,
    ) -> Float[np.ndarray, "4 4"]:
        """The affine of this kind that maximises Mattes mutual information near the start."""
        then = None if initial is None else itk_affine(initial)
        own_start = start if initial is None else np.eye(4)
        # Turning about the centre keeps rotation and translation independent in the search.
        transform = initial_transform(kind, own_start, self.fine[1].centre)
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
                optimise(moving, fixed, transform, first_step_mm, share, then)
        affine = affine_from_itk(transform)
        return affine if initial is None else initial @ affine

    def overlap(self, affine: Float[np.ndarray, "4 4"]) -> float:
        """Share of the smaller foreground that lies upon the other."""
        moving, fixed = self.fine
        mask = Volume(moving.foreground.astype(np.uint8), moving.image.grid)
        on_fixed = resample_to_grid(mask, fixed.image.grid, affine, "nearest") != 0
        common = np.count_nonzero(on_fixed & fixed.foreground)
        moving_mm3 = moving.foreground_mm3 / abs(np.linalg.det(affine[:3, :3]))
        smaller = min(moving_mm3, fixed.foreground_mm3) / np.prod(fixed.image.grid.spacing)
        return min(1.0, float(common / smaller))

    def assessed(
        self,
        chosen: Float[np.ndarray, "4 4"],
        original: Float[np.ndarray, "4 4"],
        kind: AffineKind,
        least_coefficient: float,
        search_failed: bool,
    ) -> Alignment:
        """The chosen affine with its measures; logs what looks wrong."""
        overlap = self.overlap(chosen)
        coefficient = self.information.uncertainty_coefficient(chosen)
        flags = tuple(self._flags(search_failed, overlap, coefficient, least_coefficient))
        for flag in flags:
            log.warning("%s", flag.sentence)
        before, after = self.information(original), self.information(chosen)
        return Alignment(chosen, kind, before, after, coefficient, overlap, flags)

    def _flags(
        self, search_failed: bool, overlap: float, coefficient: float, least_coefficient: float
    ) -> Iterator[Flag]:
        moving, fixed = (copy.image.name for copy in self.fine)
        failure, little_overlap, unlike = FLAGS

        def flag(name: str, doubt: str, value: float | None, limit: float | None) -> Flag:
            return Flag(name, "pair", f"{moving}: {doubt}; check the result.", value, limit)

        if search_failed:
            doubt = (
                f"the affine search failed (less mutual information with {fixed} than before, or "
                "too little overlap), so the better of its start and the original position is used"
            )
            yield flag(failure, doubt, None, None)
        if overlap < SMALLEST_OVERLAP:
            doubt = (
                f"only {100 * overlap:.0f} % of its foreground overlaps that of {fixed} after the "
                "affine alignment"
            )
            yield flag(little_overlap, doubt, overlap, SMALLEST_OVERLAP)
        if coefficient < least_coefficient:
            doubt = (
                f"after the affine alignment it has little in common with {fixed} (uncertainty "
                f"coefficient {100 * coefficient:.1f} %, usually at least "
                f"{100 * least_coefficient:g} %)"
            )
            yield flag(unlike, doubt, coefficient, least_coefficient)


def _is_cut_out(volume: Volume) -> bool:
    """Whether most of the image's border shows foreground."""
    mask = foreground_of(volume)
    inner = mask[1:-1, 1:-1, 1:-1]
    border = np.count_nonzero(mask) - np.count_nonzero(inner)
    return bool(border > 0.5 * (mask.size - inner.size))


def _information(moving: Copy, fixed: Copy) -> MutualInformation:
    known = None if moving.hole is None else moving.hole.data == 0
    return MutualInformation(moving.image, fixed.image, fixed.near_foreground(), known)

"""A rough pose from many starts: how the moving image is turned, moved and scaled.

The images are tiny copies of some ten millimetres per voxel, so that one trial takes a tenth of a
millisecond and thousands can be afforded. Every step is a plain array operation in one order, so
equal input gives equal output.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from nibabel.affines import from_matvec

from ..images.background import background_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jaxtyping import Bool, Float, Int

    from ..images.volume import Volume

    # Rotation vector (3), shift of the moving centre in mm (3), logarithm of the scale.
    Pose = Float[np.ndarray, " 7"]

BINS = 16
# With fewer sampled points inside the moving image, the information counts as 0.
LEAST_SHARE_INSIDE = 0.05
# Rotations to start from: a lattice of rotation vectors in a ball. 80 degrees are what a head may
# be turned, beyond that its symmetries tempt (the face looks back, or out of the vertex).
LATTICE_STEP_RAD, LATTICE_RADIUS_RAD = math.radians(24), math.radians(80)
# Logarithms of scales to start from, relative to the one by which the foregrounds' volumes agree.
LOG_SCALES = (-0.16, 0.0, 0.16)
STARTS = 5
# First steps of the search: radians, share of the moving foreground's size, logarithm of scale.
FIRST_STEPS = (math.radians(10), 0.08, 0.1)
HALVINGS = 3


class MutualInformation:
    """Mutual information of the two images in nats: 0 if they are unrelated.

    Counted over points of the fixed image; those that fall outside the moving image add nothing,
    so drifting apart never pays. The contrasts need not be equal.

    Args:
        moving: Image; the nearest voxel is taken, so its spacing should be half of the fixed one's.
        fixed: Image.
        points: Voxels of `fixed` that are counted.
        moving_mask: Voxels of `moving` that count; None is all.

    Source:
        Viola and Wells, Alignment by maximization of mutual information (1997).
    """

    def __init__(
        self,
        moving: Volume,
        fixed: Volume,
        points: Bool[np.ndarray, "i j k"],
        moving_mask: Bool[np.ndarray, "i j k"] | None = None,
    ) -> None:
        self._index = np.argwhere(points).astype(np.float32)
        self._fixed_bins = _binned(fixed.data)[points] * (BINS + 1)
        self._fixed_grid = fixed.grid
        bins = _binned(moving.data)
        if moving_mask is not None:
            bins[~moving_mask] = BINS
        # A border of the bin that means outside, where points beyond it are clipped to.
        bins = np.pad(bins, 1, constant_values=BINS)
        self._moving_bins = bins.ravel()
        self._last = np.subtract(bins.shape, 1, dtype=np.float32)
        self._strides = np.array([bins.shape[1] * bins.shape[2], bins.shape[2], 1], np.float32)
        self._to_index = moving.grid.world_to_index.copy()
        self._to_index[:3, 3] += 1.0

    def __call__(self, affine: Float[np.ndarray, "4 4"]) -> float:
        """The information under fixed world mm → moving world mm (RAS)."""
        joint, inside = self._joint(affine)
        if inside < LEAST_SHARE_INSIDE:
            return 0.0
        own = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
        return inside * (own - _entropy(joint.ravel()))

    def uncertainty_coefficient(self, affine: Float[np.ndarray, "4 4"]) -> float:
        """Mutual information as a share of the fixed image's entropy where both are: 0 to 1.

        Source:
            Theil, On the estimation of relationships involving qualitative variables (1970).
        """
        joint, inside = self._joint(affine)
        of_fixed = _entropy(joint.sum(axis=1))
        if inside < LEAST_SHARE_INSIDE or of_fixed == 0:
            return 0.0
        return 1 + (_entropy(joint.sum(axis=0)) - _entropy(joint.ravel())) / of_fixed

    def _joint(
        self, affine: Float[np.ndarray, "4 4"]
    ) -> tuple[Float[np.ndarray, "bins bins"], float]:
        """Joint probabilities of fixed and moving bins, and the share of the points inside."""
        matrix = (self._to_index @ affine @ self._fixed_grid.affine).astype(np.float32)
        at = self._index @ matrix[:3, :3].T
        at += matrix[:3, 3]
        np.clip(np.rint(at, out=at), 0, self._last, out=at)
        moving_bins = self._moving_bins[(at @ self._strides).astype(np.intp)]
        counts = np.bincount(self._fixed_bins + moving_bins, minlength=BINS * (BINS + 1))
        joint = counts.reshape(BINS, BINS + 1)[:, :BINS].astype(np.float64)
        total = joint.sum()
        return joint / max(total, 1.0), float(total / len(self._index))


def find_pose(
    information: MutualInformation,
    moving_centre: Float[np.ndarray, " 3"],
    fixed_centre: Float[np.ndarray, " 3"],
    size_mm: float,
    log_scale: float | None,
) -> Float[np.ndarray, "4 4"]:
    """Rotation, translation and scale of the most mutual information, wherever the images lie.

    Rotations up to 80 degrees and scales about the given one are tried with the centres upon each
    other, and so are the images as they lie; a pattern search goes on from the best few.

    Args:
        information: What to maximise.
        moving_centre: Of its foreground, world mm (RAS).
        fixed_centre: The same.
        size_mm: Of the moving foreground.
        log_scale: Logarithm of moving size / fixed size; None keeps the size.

    Returns:
        Fixed world mm → moving world mm (RAS).
    """
    radians, share_of_size, log_step = FIRST_STEPS
    steps = np.array([*[radians] * 3, *[share_of_size * size_mm] * 3, log_step])
    if log_scale is None:
        steps = steps[:6]

    def value_of(pose: Pose) -> float:
        return information(_affine_of(pose, moving_centre, fixed_centre))

    scales = [0.0] if log_scale is None else [log_scale + change for change in LOG_SCALES]
    trials = [np.array([*turn, 0, 0, 0, scale]) for turn in _turns() for scale in scales]
    trials.append(np.array([0, 0, 0, *(fixed_centre - moving_centre), 0]))
    starts = _distinct(sorted(trials, key=value_of, reverse=True))
    _, best = max(
        (_climbed(value_of, pose, steps) for pose in starts), key=lambda result: result[0]
    )
    return _affine_of(best, moving_centre, fixed_centre)


def _climbed(
    value_of: Callable[[Pose], float], pose: Pose, steps: Float[np.ndarray, " n"]
) -> tuple[float, Pose]:
    """Improve one parameter after the other, by ever smaller steps."""
    value, steps = value_of(pose), steps.copy()
    for _ in range(HALVINGS):
        while True:
            before = value
            for parameter, step in enumerate(steps):
                for change in (step, -step):
                    trial = pose.copy()
                    trial[parameter] += change
                    if (new := value_of(trial)) > value:
                        value, pose = new, trial
                        break
            if value <= 1.002 * before:
                break
        steps /= 2
    return value, pose


def _distinct(ranked: Iterable[Pose]) -> list[Pose]:
    """The best few that are not turned to neighbours of one another."""
    chosen: list[Pose] = []
    for pose in ranked:
        apart = (math.dist(pose[:3], other[:3]) for other in chosen)
        if all(distance > 1.01 * LATTICE_STEP_RAD for distance in apart):
            chosen.append(pose)
        if len(chosen) == STARTS:
            break
    return chosen


def _turns() -> Float[np.ndarray, "n 3"]:
    """Rotation vectors of the lattice."""
    reach = int(LATTICE_RADIUS_RAD / LATTICE_STEP_RAD)
    along = np.arange(-reach, reach + 1) * LATTICE_STEP_RAD
    turns = np.stack(np.meshgrid(along, along, along, indexing="ij"), axis=-1).reshape(-1, 3)
    return turns[np.linalg.norm(turns, axis=1) <= LATTICE_RADIUS_RAD]


def _affine_of(
    pose: Pose,
    moving_centre: Float[np.ndarray, " 3"],
    fixed_centre: Float[np.ndarray, " 3"],
) -> Float[np.ndarray, "4 4"]:
    matrix = math.exp(pose[6]) * _rotation(pose[:3])
    return from_matvec(matrix, moving_centre + pose[3:6] - matrix @ fixed_centre)


def _rotation(vector: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Rodrigues' formula: a turn about the vector by its length in radians."""
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def _binned(data: Float[np.ndarray, "i j k"]) -> Int[np.ndarray, "i j k"]:
    """Intensities in equal steps from background to 99.5th percentile of what is brighter."""
    low = background_of(data)
    high = float(np.percentile(data[data > low], 99.5))
    return np.clip((data - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)


def _entropy(probabilities: Float[np.ndarray, " n"]) -> float:
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())

"""What a grid, an image, a label map or a mask must be like to be registered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import VolumeError

if TYPE_CHECKING:
    from ..geometry.spaces import Grid
    from .data import Volume

# Fewer voxels on an axis leave nothing to smooth, differentiate or deform.
MIN_SIDE = 4
# Largest cosine between two axes. Headers round at 1e-6; at 1e-3 a 200 mm field of view is
# distorted by 0.2 mm, which is less than a voxel and more than any rounding.
MAX_SHEAR = 1e-3

# No scanner makes larger voxels, and no room holds an image as far away.
LARGEST_VOXEL_MM, LARGEST_DISTANCE_MM = 1e3, 1e6
# Intensities differ by no less and are no larger, so that float32 holds their squares.
LEAST_CONTRAST, LARGEST_INTENSITY = 1e-18, 1e18
# Beyond, integers in double precision have gaps.
LARGEST_LABEL = 2**53
# Larger label maps with more labels are checked for neighbours of the same label: most voxels have
# some, down to parcellations into a thousand; few voxels of images do.
MANY_LABELS, MANY_VOXELS, LEAST_ALIKE = 100, 50_000, 0.3


def check_grid(grid: Grid, name: str) -> None:
    """Refuse a grid with too few voxels, or with a singular, sheared or absurd affine."""
    if min(grid.shape) < MIN_SIDE:
        raise VolumeError(
            f"{name}: expected at least {MIN_SIDE} voxels on every axis, "
            f"got shape {grid.shape}; pass a volume, not a slice."
        )
    if not np.isfinite(grid.affine).all():
        raise VolumeError(
            f"{name}: expected a finite affine, got {grid.affine.tolist()}; repair the header."
        )
    spacing = grid.spacing
    if spacing.min() < 1e-6 or abs(np.linalg.det(grid.directions)) < 1e-6:
        raise VolumeError(
            f"{name}: expected an invertible affine, got a singular one with spacing "
            f"{spacing.round(6).tolist()}; repair the header."
        )
    if spacing.max() > LARGEST_VOXEL_MM or np.abs(grid.affine[:3, 3]).max() > LARGEST_DISTANCE_MM:
        raise VolumeError(
            f"{name}: expected voxels of at most {LARGEST_VOXEL_MM:g} mm within "
            f"{LARGEST_DISTANCE_MM:g} mm of the origin, got {spacing.max():g} mm at "
            f"{grid.affine[:3, 3].tolist()}; repair the header, or its unit."
        )
    cosines = np.abs(grid.directions.T @ grid.directions - np.eye(3))
    if cosines.max() > MAX_SHEAR:
        raise VolumeError(
            f"{name}: expected perpendicular voxel axes, got a sheared affine (cosine "
            f"{cosines.max():.4f}); resample it to a plain grid first."
        )


def check_image(volume: Volume) -> None:
    """Refuse an image that cannot be registered.

    Raises:
        VolumeError: Too few voxels, a singular or sheared affine, values that are not finite, or
            the same value everywhere.
    """
    check_grid(volume.grid, volume.name)
    low, high = float(volume.data.min()), float(volume.data.max())  # NaN and Inf show in these
    if not np.isfinite([low, high]).all():
        bad = int(volume.data.size - np.isfinite(volume.data).sum())
        raise VolumeError(
            f"{volume.name}: expected finite intensities, got {bad} voxels of NaN or Inf; "
            "replace them first."
        )
    if low == high:
        raise VolumeError(
            f"{volume.name}: expected an image with contrast, got the constant {low:g}; "
            "check that it is the right file."
        )
    if high - low < LEAST_CONTRAST or max(-low, high) > LARGEST_INTENSITY:
        raise VolumeError(
            f"{volume.name}: expected intensities that differ by {LEAST_CONTRAST:g} and are up to "
            f"{LARGEST_INTENSITY:g}, got {low:g} to {high:g}; rescale them first."
        )


def check_label_map(labels: Volume) -> None:
    """Refuse a grid that `check_image` would refuse, and labels that a warp would change.

    ITK takes labels through double precision, which holds integers up to 2^53.
    """
    check_grid(labels.grid, labels.name)
    _check_is_label_map(labels)
    if labels.data.dtype.itemsize < 8 or not labels.data.size:
        return
    least, most = int(labels.data.min()), int(labels.data.max())
    if max(-least, most) > LARGEST_LABEL:
        raise VolumeError(
            f"{labels.name}: expected labels up to 2^53 ({LARGEST_LABEL}), which resampling "
            f"carries exactly, got {most if most > -least else least}; number them anew."
        )


def _check_is_label_map(labels: Volume) -> None:
    """Refuse an image in the place of a label map: its many values change from voxel to voxel."""
    if labels.data.size < MANY_VOXELS or np.ptp(labels.data) < MANY_LABELS:
        return
    inside = labels.data[:-1] != 0
    alike = float(np.mean((labels.data[:-1] == labels.data[1:])[inside])) if inside.any() else 1.0
    if alike < LEAST_ALIKE and (count := len(np.unique(labels.data))) > MANY_LABELS:
        raise VolumeError(
            f"{labels.name}: expected a label map, got {count} values of which {alike:.0%} are "
            "alike in neighbouring voxels, as in an image; check that it is the right file."
        )


def check_labels(labels: Volume) -> None:
    """Refuse a label map without any label, or that `check_label_map` would refuse."""
    check_label_map(labels)
    if not labels.data.any():
        raise VolumeError(
            f"{labels.name}: expected at least one label besides 0, got none; "
            "check that it is the right file."
        )


def check_mask(mask: Volume, image: Volume) -> None:
    """Refuse a mask of another grid, or one without any voxel.

    Raises:
        VolumeError: It is one.
    """
    if not mask.data.any():
        raise VolumeError(
            f"{mask.name}: expected a mask with voxels that count (not 0), got an empty one; check "
            "that it is the right file."
        )
    check_same_grid(image, mask)


def check_same_grid(volume: Volume, labels: Volume) -> None:
    """Refuse labels that do not lie on the voxels of their image.

    Raises:
        VolumeError: Shape or affine differ.
    """
    if volume.grid.matches(labels.grid):
        return
    differ = "another affine" if volume.grid.shape == labels.grid.shape else "another shape"
    raise VolumeError(
        f"{labels.name}: expected the grid of {volume.name} {volume.grid.shape}, got {differ} "
        f"{labels.grid.shape}; resample it onto its image first, labels and masks with nearest "
        "neighbour."
    )

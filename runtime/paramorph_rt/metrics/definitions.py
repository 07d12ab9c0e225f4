"""What each metric is, in a sentence, by its key in metrics.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFINITIONS = {
    "ncc": "Pearson's correlation of the intensities within the fixed foreground",
    "ssim": "mean structural similarity within the fixed foreground, uniform 7-voxel cubes, "
    "intensities scaled to 0 to 1",
    "mse": "mean squared difference within the fixed foreground, intensities scaled to 0 to 1",
    "dice": "2 |A and B| / (|A| + |B|), no smoothing; 0 if one map lacks the label",
    "assd_mm": "average symmetric surface distance: mean over the border voxels of both maps "
    "together; null if a map lacks the label",
    "hd95_mm": "larger of the two directed 95th percentiles of the distance between border voxels; "
    "null if a map lacks the label",
    "nsd": "normalised surface distance: share of the border voxels of both maps together that are "
    "within nsd_tolerance_mm; 0 if one map lacks the label",
    "volume_mm3": "voxels times voxel volume; moving on its own grid, the others on the fixed one",
    "volume_change_percent": "100 (after / moving - 1) of volume_mm3; null if the moving map lacks "
    "the label",
    "nonpositive_jacobian_percent": "voxels with Jacobian determinant <= 0 by central differences",
    "sd_log_jacobian": "standard deviation of log max(J, 1e-9), central differences, all voxels",
    "sd_log_jacobian_l2r": "standard deviation of log(J + 3), central differences, 2 voxels "
    "cropped at each side, as Learn2Reg computes SDlogJ",
    "nondiffeomorphic_volume_percent": "volume of the tetrahedra between voxels that are turned "
    "inside out (NDV, Liu et al. 2024)",
    "nondiffeomorphic_voxels_percent": "voxels at which any of the ten determinants of the digital "
    "diffeomorphism is <= 0 (Liu et al. 2024)",
    "tre_mm": "target registration error: distance from the transformed fixed landmark to the "
    "moving one, in the moving world; null outside the displacement field",
}


def definitions_of(keys: Iterable[str]) -> dict[str, Any]:
    """The sentences of those metrics that are there, in their order here."""
    present = set(keys)
    return {key: text for key, text in DEFINITIONS.items() if key in present}

"""Real pairs to measure a network on, prepared as the runtime prepares them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from paramorph.data import find_subjects
from paramorph_export.errors import ExportError
from paramorph_rt.geometry.field import field_from_network
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.images.volume import load_labels, load_volume
from paramorph_rt.metrics.overlap import dice, mean_over, present_labels
from paramorph_rt.steps.affine import align_affine
from paramorph_rt.steps.preparation import prepare_pair

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jaxtyping import Float

    from paramorph_rt.bundle import InputSpec
    from paramorph_rt.images.volume import Volume
    from paramorph_rt.steps.preparation import PreparedPair


@dataclass(frozen=True, eq=False)
class Pair:
    """Two labelled images, aligned, on the network grid."""

    name: str
    affine: Float[np.ndarray, "4 4"]  # fixed world mm → moving world mm (RAS)
    prepared: PreparedPair
    moving_labels: Volume
    fixed_labels: Volume

    def dice(self, displacement_vox: Float[np.ndarray, "3 i j k"], sampling: str) -> float:
        """Mean Dice, over the labels that both have, of what this output of the network makes."""
        field = field_from_network(displacement_vox, self.prepared.grid, sampling)
        field = field.resampled_to(self.fixed_labels.grid).composed_with_affine(self.affine)
        warped = warp_volume(self.moving_labels, field, "nearest")
        common = present_labels(self.moving_labels.data) & present_labels(self.fixed_labels.data)
        overlap = dice(self.fixed_labels.data, warped.data)
        return mean_over({label: overlap.get(label, 0.0) for label in common}, common)


def pairs_of(folder: Path, spec: InputSpec) -> list[Pair]:
    """Each labelled subject of a folder with the next, and the last with the first.

    Args:
        folder: `NAME_*.nii.gz` with `NAME_labels.nii.gz`.
        spec: What the network expects.

    Raises:
        ExportError: Fewer than two subjects with labels.
    """
    subjects = [s for s in find_subjects(folder) if s.labels is not None]
    if len(subjects) < 2:
        raise ExportError(
            f"{folder}: expected at least two volumes with labels, got {len(subjects)}; add "
            "NAME_labels.nii.gz beside NAME.nii.gz."
        )
    pairs = []
    for moving, fixed in pairwise([*subjects, subjects[0]]):
        moving_image, fixed_image = load_volume(moving.image), load_volume(fixed.image)
        affine = align_affine(moving_image, fixed_image).affine
        prepared = prepare_pair(moving_image, fixed_image, affine, spec)
        labels = load_labels(moving.labels), load_labels(fixed.labels)
        pairs.append(Pair(f"{moving.name} → {fixed.name}", affine, prepared, *labels))
    return pairs

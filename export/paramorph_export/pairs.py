"""Real pairs to measure a network on, prepared as the runtime prepares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramorph.data import labelled_pairs
from paramorph_rt.geometry.field import field_from_network
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.images.volume import load_labels, load_volume
from paramorph_rt.metrics.overlap import dice, mean_over, present_labels
from paramorph_rt.steps.affine import align_affine
from paramorph_rt.steps.foreground import MaskedImage
from paramorph_rt.steps.preparation import prepare_pair

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jaxtyping import Float

    from paramorph.data import SubjectFiles
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
        field = self.affine @ field.resampled_to(self.fixed_labels.grid)
        warped = warp_volume(self.moving_labels, field, "nearest")
        common = present_labels(self.moving_labels.data) & present_labels(self.fixed_labels.data)
        return mean_over(dice(self.fixed_labels.data, warped.data), common)


def pairs_of(folder: Path, spec: InputSpec) -> list[Pair]:
    """Each labelled subject of a folder with the next, and the last with the first.

    Args:
        folder: `NAME_*.nii.gz` with `NAME_labels.nii.gz`.
        spec: What the network expects.

    Raises:
        DataError: Fewer than two subjects with labels.
    """
    return [pair_of(moving, fixed, spec) for moving, fixed in labelled_pairs(folder)]


def pair_of(moving: SubjectFiles, fixed: SubjectFiles, spec: InputSpec) -> Pair:
    """Two labelled subjects, read, aligned and prepared."""
    moving_image, fixed_image = load_volume(moving.image), load_volume(fixed.image)
    affine = align_affine(moving_image, fixed_image).affine
    prepared = prepare_pair(MaskedImage(moving_image), MaskedImage(fixed_image), affine, spec)
    labels = load_labels(moving.labels), load_labels(fixed.labels)
    return Pair(f"{moving.name} → {fixed.name}", affine, prepared, *labels)

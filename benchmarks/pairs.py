"""Labelled pairs on disk and in memory, and what a displacement field between them is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from paramorph import data
from paramorph.data import SubjectFiles
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.images.checks import check_same_grid
from paramorph_rt.images.volume import Volume, load_labels, load_volume, save_labels, save_volume
from paramorph_rt.metrics import overlap
from paramorph_rt.metrics.deformation import regularity
from paramorph_rt.metrics.summary import compare_images, compare_labels
from record import BenchmarkError

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Integer

    from paramorph_rt.geometry.field import DisplacementField


@dataclass(frozen=True)
class Case:
    """A pair to register.

    Attributes:
        moving: Image and labels.
        fixed: Image and labels.
        true_field: File of the true displacement field, where it is known.
    """

    moving: SubjectFiles
    fixed: SubjectFiles
    true_field: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.moving.name} → {self.fixed.name}"

    def load(self) -> LabelledPair:
        """Images and labels in memory."""
        return LabelledPair(
            load_volume(self.moving.image),
            load_volume(self.fixed.image),
            load_labels(self.moving.labels),
            load_labels(self.fixed.labels),
        )


@dataclass(frozen=True)
class LabelledPair:
    """Two images and their label maps, in memory."""

    moving: Volume
    fixed: Volume
    moving_labels: Volume | None
    fixed_labels: Volume | None


def labelled_pairs(folder: Path, first: int | None = None) -> list[Case]:
    """The first or all pairs of a folder: each labelled volume to the next, the last to the first.

    Args:
        folder: `NAME_*.nii.gz` with `NAME_labels.nii.gz`.
        first: So many of them.

    Raises:
        DataError: Fewer than two volumes with labels.
    """
    return [Case(*pair) for pair in data.labelled_pairs(folder)[:first]]


def write_subject(
    folder: Path, name: str, image: Volume, labels: Integer[np.ndarray, "i j k"]
) -> SubjectFiles:
    """Write an image, and labels of its voxels beside it."""
    files = SubjectFiles(name, folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz")
    save_volume(files.image, image)
    save_labels(files.labels, Volume(labels, image.grid, f"{name}'s labels"))
    return files


def evaluate(field: DisplacementField, pair: LabelledPair) -> dict[str, float | None]:
    """Overlap, distance, likeness and regularity on the fixed image's own grid.

    Args:
        field: Complete, fixed → moving, on the grid of the fixed image.
        pair: Its labels are warped by nearest neighbour.

    Returns:
        Mean Dice, ASSD and HD95 over the labels that both maps have; NCC; regularity, folds and
        non-diffeomorphic volume among it.

    Raises:
        BenchmarkError: The field lies on another grid.
    """
    if not field.grid.matches(pair.fixed.grid):
        raise BenchmarkError(
            f"field: expected it on the grid of {pair.fixed.name} {pair.fixed.grid.shape}, got "
            f"another of {field.grid.shape}; correct the method."
        )
    warped = warp_volume(pair.moving, field)
    labels = warp_volume(pair.moving_labels, field, "nearest")
    tables = compare_labels(pair.fixed_labels, pair.moving_labels, {"after": labels.data})
    return {
        **{name: table["after"]["mean"] for name, table in tables.items()},
        "ncc": compare_images(pair.fixed, {"after": warped.data}, ["ncc"])["ncc"]["after"],
        **regularity(field),
    }


def errors_mm(
    field: DisplacementField, truth: DisplacementField, fixed: Volume
) -> dict[str, float]:
    """How far a field sends the points of the brain from where they truly lie.

    Args:
        field: Complete, fixed → moving, on the grid of the fixed image.
        truth: The same, known.
        fixed: 0 outside the brain.

    Returns:
        Mean, 95th percentile and maximum of the distances over the brain's voxels.
    """
    inside = fixed.data != 0
    distances = np.linalg.norm(field.vectors_mm[inside] - truth.vectors_mm[inside], axis=-1)
    return {
        "error_mean_mm": float(distances.mean(dtype=np.float64)),
        "error_p95_mm": float(np.percentile(distances, 95)),
        "error_max_mm": float(distances.max()),
    }


def mean_dice(warped_labels: Volume, pair: LabelledPair) -> float | None:
    """Mean Dice as `evaluate` takes it, of moving labels that a method warped itself."""
    check_same_grid(pair.fixed, warped_labels)
    return overlap.mean_dice(pair.fixed_labels.data, warped_labels.data, pair.moving_labels.data)

"""What a subject is: its files on disk, its arrays on the network grid, and its part in a split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from paramorph_rt.errors import ParamorphError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from jaxtyping import Float, Integer


class DataError(ParamorphError, ValueError):
    """Training data that is missing, or cannot be read or prepared."""


@dataclass(frozen=True)
class SubjectFiles:
    """One subject on disk.

    Attributes:
        name: Part of the cached file's name.
        image: Volume.
        labels: Label map on the voxels of `image`, or None.
        keep_labels: Labels that are used, the others become 0; all if empty.
        orientation: Where the voxels' axes of Analyze images point, such as "LAS".
        odd_is_left: Odd labels are left and even ones right, by which `orientation` is checked.
    """

    name: str
    image: Path
    labels: Path | None
    keep_labels: tuple[int, ...] = ()
    orientation: str = ""
    odd_is_left: bool = False


@dataclass(frozen=True)
class Subject:
    """One subject on the network grid.

    Attributes:
        name: As in its `SubjectFiles`.
        image: Intensities in [0, 1], affinely aligned to the reference subject.
        labels: Label map on the same grid, or None.
    """

    name: str
    image: Float[np.ndarray, "d h w"]
    labels: Integer[np.ndarray, "d h w"] | None


@dataclass(frozen=True)
class Split:
    """Subjects to train on and, apart from them, subjects to validate on.

    Attributes:
        training: At least one.
        validation: May be empty.
        reference_name: Which of both all are aligned to; empty is the first to train on.
    """

    training: list[SubjectFiles]
    validation: list[SubjectFiles]
    reference_name: str = ""

    @property
    def reference(self) -> SubjectFiles:
        """The subject that all are aligned to.

        Raises:
            DataError: No subject of that name.
        """
        if not self.reference_name:
            return self.training[0]
        by_name = {files.name: files for files in (*self.validation, *self.training)}
        if self.reference_name not in by_name:
            raise DataError(
                f"[data] reference: expected the name of a subject, got {self.reference_name}; "
                f"choose one of {', '.join(by_name)}."
            )
        return by_name[self.reference_name]


def stem(path: Path) -> str:
    """A volume's file name without .nii, .nii.gz or, of Analyze, .hdr."""
    return path.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".hdr")


def is_volume(path: Path) -> bool:
    """Whether a file is called a NIfTI or, of Analyze, a header."""
    return path.name.endswith((".nii", ".nii.gz", ".hdr", ".hdr.gz"))

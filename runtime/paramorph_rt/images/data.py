"""Volumes and series of them: voxels, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import VolumeError
from ..geometry.spaces import Grid

if TYPE_CHECKING:
    from collections.abc import Sequence

    import nibabel as nib
    from jaxtyping import Shaped


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they are.

    Attributes:
        data: Intensities (float32) or labels (an integer type), one per voxel of `grid`.
        grid: Where the voxels lie in the world.
        name: What messages call it, usually the file's name.
    """

    data: Shaped[np.ndarray, "i j k"]
    grid: Grid
    name: str = "volume"

    def __post_init__(self) -> None:
        if self.data.shape != self.grid.shape:
            raise VolumeError(
                f"{self.name}: expected data of its grid's shape {self.grid.shape}, "
                f"got {self.data.shape}; pass the grid that belongs to the data."
            )

    def cropped(self, first: np.ndarray, stop: np.ndarray) -> Volume:
        """The voxels from `first` to one before `stop` on each axis; a view of the data."""
        box = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
        return Volume(self.data[box], self.grid.cropped(first, stop), self.name)

    def padded(self, width: Sequence[int], value: float) -> Volume:
        """With so many more voxels before and after each axis, all of one value."""
        data = np.pad(self.data, [(w, w) for w in width], constant_values=value)
        return Volume(data, self.grid.padded(width), self.name)


@dataclass(frozen=True, eq=False)
class Series:
    """Volumes of one grid, one after the other, such as those of functional MRI.

    Attributes:
        data: Intensities in the type of the file, read from it volume by volume.
        grid: Where the voxels of each volume lie in the world.
        step: Seconds from one volume to the next; 0 is unknown.
        name: What messages call it.
    """

    data: nib.arrayproxy.ArrayLike
    grid: Grid
    step: float = 0.0
    name: str = "series"

    def __len__(self) -> int:
        return int(self.data.shape[3])

    def __getitem__(self, number: int) -> Volume:
        """One volume, as float32."""
        if not 0 <= number < len(self):
            raise IndexError(
                f"{self.name}: expected a volume from 0 to {len(self) - 1}, got {number}; choose "
                "another --reference-volume."
            )
        data = np.asarray(self.data[..., number], dtype=np.float32)
        return Volume(data, self.grid, f"{self.name}[{number}]")

    def mean(self) -> Volume:
        """The mean over all volumes."""
        total = np.zeros(self.grid.shape, np.float64)
        for number in range(len(self)):
            total += self.data[..., number]
        return Volume((total / len(self)).astype(np.float32), self.grid, self.name)

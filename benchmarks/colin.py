"""A labelled pair of any size from files of the repository: Colin27, and itself deformed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pairs import Case, write_subject
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.images.volume import Volume, load_labels, load_volume

if TYPE_CHECKING:
    from jaxtyping import Float

BRAIN, LABELS = (
    Path(__file__).parents[1] / "examples/colin27" / name
    for name in ("ch2bet.nii.gz", "aal.nii.gz")
)
SIDE_MM = 208  # of a cube with all of the brain; so many voxels per axis are 1 mm
MIDDLE = (-0.5, -16.5, 8.5)  # of the brain, in its world
BEND_MM, WAVE_MM = 5.0, 60.0
TURN_DEGREES = 8


def cube(size: int) -> Grid:
    """`size`³ voxels about the brain, RAS: more voxels are finer, what they show stays the same."""
    return Grid.from_spacing([size] * 3, SIDE_MM / size, np.eye(3), centre=np.array(MIDDLE))


def write_colin_pair(folder: Path, size: int) -> Case:
    """A pair of `size`³ voxels, 116 labels each.

    The fixed one is Colin27 turned by 8 degrees and bent by up to 5 mm on each axis.
    """
    folder.mkdir(exist_ok=True)
    grid = cube(size)
    image, labels = load_volume(BRAIN), load_labels(LABELS)
    # On the cube first, smoothed where that is coarser; the warp does not smooth.
    coarse = Volume(resample_to_grid(image, grid), grid, image.name)
    bent = DisplacementField(grid, _deformation_mm(grid))
    both = {
        "colin": (coarse.data, resample_to_grid(labels, grid, None, "nearest")),
        "bent": (warp_volume(coarse, bent).data, warp_volume(labels, bent, "nearest").data),
    }
    return Case(
        *(
            write_subject(folder, name, Volume(np.rint(data).astype(np.int16), grid, name), labels)
            for name, (data, labels) in both.items()
        )
    )


def _deformation_mm(grid: Grid) -> Float[np.ndarray, "i j k 3"]:
    x, y, z = np.moveaxis(grid.positions() - MIDDLE, -1, 0)
    turn = np.radians(TURN_DEGREES)
    wave = 2 * np.pi / WAVE_MM
    parts = (
        (np.cos(turn) - 1) * x - np.sin(turn) * y + BEND_MM * np.sin(wave * z),
        np.sin(turn) * x + (np.cos(turn) - 1) * y + BEND_MM * np.sin(wave * x),
        BEND_MM * np.sin(wave * y),
    )
    return np.stack(parts, axis=-1).astype(np.float32)

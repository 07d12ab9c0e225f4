"""The interactive 3-D view of a page: small volumes, and NiiVue to draw them."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from ..geometry.resample import resample_to_grid
from ..geometry.spaces import Grid, reoriented
from ..images.volume import Volume
from ..steps.foreground import foreground_box

if TYPE_CHECKING:
    from .slices import Pair

FINEST_MM = 1.5
LONGEST_SIDE = 160  # voxels
_MARGIN_MM = 6.0
_VENDORED = "vendored/niivue.umd.js.gz"


@dataclass(frozen=True)
class EmbeddedVolume:
    """A volume as text.

    Attributes:
        key: "fixed", or a stage of the moving image.
        title: What the page calls it.
        base64: A gzipped NIfTI of 8 bits.
    """

    key: str
    title: str
    base64: str


@dataclass(frozen=True)
class Solid:
    """What the 3-D view consists of.

    Attributes:
        volumes: What it shows, all on one grid.
        spacing_mm: Of that grid.
        niivue: NiiVue's script, gzipped, in base64.
        script: The same script, as it will run.
        version: Of NiiVue.
    """

    volumes: list[EmbeddedVolume]
    spacing_mm: float
    niivue: str
    script: str
    version: str


def solid_of(pair: Pair) -> Solid:
    """Sample a pair coarsely, within its windows, and pack it with NiiVue."""
    folder = files(__package__)
    packed = folder.joinpath(_VENDORED).read_bytes()
    about = json.loads(folder.joinpath("vendored/niivue.json").read_text(encoding="utf-8"))
    grid = _grid(pair.fixed)
    moving, fixed = pair.moving_window, pair.fixed_window
    shown = (
        ("fixed", "Fixed", pair.fixed, None, fixed),
        ("before", "Before", pair.moving, None, moving),
        ("affine", "After affine", pair.moving, pair.result.affine, moving),
        ("after", "After", pair.result.warped, None, moving),
    )
    volumes = []
    for key, title, volume, transform, window in shown:
        scaled = window(resample_to_grid(volume, grid, transform))
        volumes.append(EmbeddedVolume(key, title, _packed(scaled, grid)))
    return Solid(
        volumes,
        round(float(grid.spacing[0]), 2),
        base64.b64encode(packed).decode(),
        gzip.decompress(packed).decode("utf-8"),
        about["version"],
    )


def _grid(fixed: Volume) -> Grid:
    """Cubes over the fixed foreground, along the axes of the fixed image."""
    data, grid = reoriented(fixed.data, fixed.grid, "RAS")
    lo, hi = (np.array(corner) for corner in foreground_box(Volume(data, grid)))
    margin = _MARGIN_MM / grid.spacing
    extent_mm = (hi - lo + 2 * margin) * grid.spacing
    step = max(FINEST_MM, float(extent_mm.max()) / LONGEST_SIDE, float(grid.spacing.min()))
    shape, origin = np.ceil(extent_mm / step), grid.world(lo - margin)
    return Grid.from_spacing(shape, step, grid.directions, origin=origin)


def _packed(scaled: np.ndarray, grid: Grid) -> str:
    image = nib.Nifti1Image((255 * scaled + 0.5).astype(np.uint8), grid.affine)
    # No time within, so that the same pair gives the same bytes.
    return base64.b64encode(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)).decode()

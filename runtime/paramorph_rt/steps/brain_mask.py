"""Where the brain is in an image of a head, by a small network that comes along: `--strip`.

It was trained on label maps of whole heads alone, from which images of any contrast were painted
(models/weights/brain-mask.md), so it does not mind which sequence an image is from. A brain that
has been extracted already stays as it is.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..backends import choose_features
from ..bundle import load_bundle
from ..errors import VolumeError
from ..geometry.resample import resample_to_grid
from ..images.volume import Volume
from .foreground import foreground_of
from .intensity import normalise_for
from .preparation import network_grid_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float

    from ..bundle import Bundle
    from ..geometry.spaces import Grid
    from ..system.stopwatch import Stopwatch
    from .load import Images

log = logging.getLogger(__name__)

LEAST_ML = 50.0  # no brain is smaller, but what a network finds where there is none
_CLOSING_MM = 4.0  # sulci and fissures that are narrower belong to the brain
#: A brain is less than half of what a whole head shows, so what is beyond this has no skull.
_MOST_OF_A_HEAD = 0.65
_FOLDER = Path(__file__).with_name("brain-mask")


def strip(images: Images, threads: int | None, seconds: Stopwatch) -> Images:
    """The images of a pair, with brain masks for those that had no mask.

    Raises:
        VolumeError: As `brain_masks`.
    """
    with seconds("strip"):
        given = {"moving": images.moving_mask, "fixed": images.fixed_mask}
        without = [which for which, mask in given.items() if mask is None]
        masks = brain_masks([getattr(images, which) for which in without], threads)
        made = dict(zip(without, masks, strict=True))
    all_masks = given | made
    return replace(
        images,
        moving_mask=all_masks["moving"],
        fixed_mask=all_masks["fixed"],
        brain_masks=made,
    )


def brain_masks(volumes: Sequence[Volume], threads: int | None = None) -> list[Volume]:
    """Masks of the brains that images show.

    Args:
        volumes: Heads with skull, or brains, on grids of their own.
        threads: None uses all cores.

    Returns:
        For each image a mask on its grid, uint8: 1 in the brain and in the fluid within it; in all
        of the foreground of an image that has no skull.

    Raises:
        VolumeError: An image in which no brain is found.
    """
    if not volumes:
        return []
    bundle = load_bundle(_FOLDER)
    grids = [network_grid_for(volume, bundle.inputs) for volume in volumes]
    images = [_prepared(*each, bundle) for each in zip(volumes, grids, strict=True)]
    scores: list[Float[np.ndarray, "1 i j k"]] = []
    with choose_features(bundle, threads=threads) as network:
        for first in range(0, len(images), 2):  # it takes two at a time
            scores.extend(network.run(images[first], images[min(first + 1, len(images) - 1)]))
    # Its one code is 1 outside the brain and -1 inside.
    return [_mask(v, g, -score[0]) for v, g, score in zip(volumes, grids, scores, strict=False)]


def _prepared(volume: Volume, grid: Grid, bundle: Bundle) -> Float[np.ndarray, "i j k"]:
    return normalise_for(resample_to_grid(volume, grid), bundle.inputs.intensity)


def _mask(volume: Volume, grid: Grid, score: Float[np.ndarray, "i j k"]) -> Volume:
    """The largest region of positive scores, closed, on the image's own grid."""
    brain = _largest(score > 0)
    closed = _closed(brain, grid)
    # Scores keep the border smooth between voxels; all that is not this region stays outside.
    score = np.where(closed, np.where(brain, score, 1), np.minimum(score, -0.1))
    on_volume = resample_to_grid(Volume(score.astype(np.float32), grid, volume.name), volume.grid)
    mask, foreground = on_volume > 0, foreground_of(volume)
    ml = float(np.count_nonzero(mask & foreground) * np.prod(volume.grid.spacing) / 1000)
    if ml < LEAST_ML:
        raise VolumeError(
            f"{volume.name}: expected a head or a brain of {LEAST_ML:.0f} ml at least, found "
            f"{ml:.0f} ml; leave out --strip, or pass a mask of your own."
        )
    if np.count_nonzero(mask & foreground) > _MOST_OF_A_HEAD * np.count_nonzero(foreground):
        log.info("%s: shows a brain without skull, which stays as it is", volume.name)
        mask |= foreground
    return Volume(mask.astype(np.uint8), volume.grid, volume.name)


def _largest(region: Bool[np.ndarray, "i j k"]) -> Bool[np.ndarray, "i j k"]:
    """Its largest connected component, without bridges of one voxel to others."""
    image = sitk.GetImageFromArray(region.astype(np.uint8))
    opened = sitk.BinaryMorphologicalOpening(image, [1] * 3, sitk.sitkBall)
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(opened), sortByObjectSize=True)
    core = sitk.BinaryDilate(parts == 1, [1] * 3, sitk.sitkBox)
    return (sitk.GetArrayFromImage(core) != 0) & region


def _closed(region: Bool[np.ndarray, "i j k"], grid: Grid) -> Bool[np.ndarray, "i j k"]:
    """With its narrow gaps and its holes, such as ventricles, filled."""
    image = sitk.GetImageFromArray(region.astype(np.uint8))
    radius = [max(1, round(_CLOSING_MM / 2 / size)) for size in grid.spacing[::-1]]
    closed = sitk.BinaryMorphologicalClosing(image, radius, sitk.sitkBall)
    return sitk.GetArrayFromImage(sitk.BinaryFillhole(closed)) != 0

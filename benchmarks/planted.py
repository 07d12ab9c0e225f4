"""Failures that are planted on purpose, for quality.py: pairs that no rater would accept, or might.

Each function takes a pair and returns another. The labels go along, so that Dice can judge the
result, unless the failure is one by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

import troubles
from paramorph_rt.images.volume import Volume
from paramorph_rt.steps.foreground import foreground_threshold

if TYPE_CHECKING:
    Plant = Callable[["Planted"], "Planted"]


@dataclass(frozen=True, eq=False)
class Planted:
    """A pair to register and to judge.

    Attributes:
        moving: Image.
        fixed: Image.
        moving_labels: On its voxels; None where both have no labels in common.
        fixed_labels: The same.
        doomed: Nobody would accept any result, whatever Dice says.
        options: Further arguments of the registration.
        network: Instead of the models: a network of this displacement, not refined.
    """

    moving: Volume
    fixed: Volume
    moving_labels: Volume | None = None
    fixed_labels: Volume | None = None
    doomed: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    network: Callable[[tuple[int, ...]], np.ndarray] | None = None


def troubled(pair: Planted, trouble: str) -> Planted:
    """One of `troubles.TROUBLES`, which a registration has to bear."""
    assert pair.moving_labels is not None
    moving, labels = troubles.TROUBLES[trouble](pair.moving, pair.moving_labels)
    return replace(pair, moving=moving, moving_labels=labels)


def turned_over(pair: Planted, axis: int) -> Planted:
    """The voxels turned round along the axis closest to an anatomical one; the header stays.

    It is a mirror image, which nothing without folds makes right, whatever Dice of one gland says.
    """
    codes = pair.moving.grid.orientation
    along = next(n for n, code in enumerate(codes) if code in ("RL", "AP", "SI")[axis])
    changed = _changed(pair, lambda data: np.ascontiguousarray(np.flip(data, along)))
    return replace(changed, doomed=True)


def half_cut(pair: Planted, axis: int) -> Planted:
    """Half of the moving image is gone."""

    def cut(data: np.ndarray) -> np.ndarray:
        data = data.copy()
        np.moveaxis(data, axis, 0)[: data.shape[axis] // 2] = data.min()
        return data

    return replace(_changed(pair, cut), doomed=True)


def inverted(pair: Planted) -> Planted:
    """Bright becomes dark within the foreground."""
    data = pair.moving.data
    threshold = foreground_threshold(data)
    foreground = data > threshold
    changed = np.where(foreground, data[foreground].max() + threshold - data, data.min())
    return replace(pair, moving=replace(pair.moving, data=changed.astype(np.float32)))


def wrong_mask(pair: Planted) -> Planted:
    """The moving image's mask lies beside it, by a third of the image."""
    mask = pair.moving.data > foreground_threshold(pair.moving.data)
    moved = np.roll(mask, [n // 3 for n in mask.shape], (0, 1, 2)).astype(np.uint8)
    return replace(pair, options={"moving_mask": replace(pair.moving, data=moved)})


def label_map(pair: Planted) -> Planted:
    """The moving labels are taken for the image."""
    assert pair.moving_labels is not None
    data = pair.moving_labels.data.astype(np.float32)
    return replace(pair, moving=replace(pair.moving, data=data), doomed=True)


def noise(pair: Planted) -> Planted:
    """The moving foreground holds nothing but noise."""
    random = np.random.default_rng(1).random(pair.moving.data.shape).astype(np.float32)
    foreground = pair.moving.data > foreground_threshold(pair.moving.data)
    data = np.where(foreground, 0.2 + random, 0).astype(np.float32)
    return replace(pair, moving=replace(pair.moving, data=data), doomed=True)


def ball(pair: Planted) -> Planted:
    """A drawn ball of the same extent."""
    shape = pair.moving.data.shape
    axes = np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in shape], indexing="ij", sparse=True)
    data = (sum(a**2 for a in axes) < 1).astype(np.float32) * 100
    return replace(pair, moving=replace(pair.moving, data=data), doomed=True)


def smooth_rubbish(shape: tuple[int, ...], sigma: float, length: float) -> np.ndarray:
    """A displacement (3, i, j, k) in voxels that has nothing to do with the images."""
    random = np.random.default_rng(2)
    vectors = [gaussian_filter(random.normal(size=shape), sigma) for _ in range(3)]
    displacement = np.stack(vectors)
    scale = length / np.linalg.norm(displacement, axis=0).mean()
    return (displacement * scale).astype(np.float32)


def collapsed(pair: Planted, sigma: float, length: float) -> Planted:
    """A network whose field is rubbish, taken as it is."""
    network = partial(smooth_rubbish, sigma=sigma, length=length)
    return replace(pair, network=network, options={"refine": 0})


PLANTED: dict[str, Plant] = {
    **{name: partial(troubled, trouble=name) for name in troubles.TROUBLES},
    "upside down": partial(turned_over, axis=2),
    "back to front": partial(turned_over, axis=1),
    "mirrored": partial(turned_over, axis=0),
    "half cut, first axis": partial(half_cut, axis=0),
    "half cut, second axis": partial(half_cut, axis=1),
    "half cut, third axis": partial(half_cut, axis=2),
    "inverted contrast": inverted,
    "wrong mask": wrong_mask,
    "label map for an image": label_map,
    "noise for an image": noise,
    "ball for an image": ball,
    "collapsed field": partial(collapsed, sigma=2.5, length=5.0),
    "smooth wrong field": partial(collapsed, sigma=8.0, length=5.0),
}


def _changed(pair: Planted, change: Callable[[np.ndarray], np.ndarray]) -> Planted:
    moving = replace(pair.moving, data=change(pair.moving.data))
    labels = pair.moving_labels
    return replace(
        pair,
        moving=moving,
        moving_labels=labels and replace(labels, data=change(labels.data)),
    )

"""Failures that are planted on purpose, for quality.py: pairs that no rater would accept, or might.

Each function takes a `Task` and returns another. The labels go along, so that Dice can judge the
result, unless the failure is one by construction.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter

import troubles
from paramorph_rt.images.volume import Volume
from paramorph_rt.steps.foreground import foreground_threshold

if TYPE_CHECKING:
    from collections.abc import Callable

    Plant = Callable[["Task"], "Task"]


@dataclass(frozen=True, eq=False)
class Task:
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


def troubled(task: Task, trouble: str) -> Task:
    """One of `troubles.TROUBLES`, which a registration has to bear."""
    assert task.moving_labels is not None
    moving, labels = troubles.TROUBLES[trouble](task.moving, task.moving_labels)
    return replace(task, moving=moving, moving_labels=labels)


def turned_over(task: Task, axis: int) -> Task:
    """The voxels turned round along the axis closest to an anatomical one; the header is kept."""
    codes = task.moving.grid.orientation
    along = next(n for n, code in enumerate(codes) if code in ("RL", "AP", "SI")[axis])
    return _changed(task, lambda data: np.ascontiguousarray(np.flip(data, along)))


def half_cut(task: Task, axis: int) -> Task:
    """Half of the moving image is gone."""

    def cut(data: np.ndarray) -> np.ndarray:
        data = data.copy()
        np.moveaxis(data, axis, 0)[: data.shape[axis] // 2] = data.min()
        return data

    return replace(_changed(task, cut), doomed=True)


def inverted(task: Task) -> Task:
    """Bright becomes dark within the foreground."""
    data = task.moving.data
    threshold = foreground_threshold(data)
    foreground = data > threshold
    changed = np.where(foreground, data[foreground].max() + threshold - data, data.min())
    return replace(task, moving=replace(task.moving, data=changed.astype(np.float32)))


def wrong_mask(task: Task) -> Task:
    """The moving image's mask lies beside it, by a third of the image."""
    mask = task.moving.data > foreground_threshold(task.moving.data)
    moved = np.roll(mask, [n // 3 for n in mask.shape], (0, 1, 2)).astype(np.uint8)
    return replace(task, options={"moving_mask": replace(task.moving, data=moved)})


def label_map(task: Task) -> Task:
    """The moving labels are taken for the image."""
    assert task.moving_labels is not None
    data = task.moving_labels.data.astype(np.float32)
    return replace(task, moving=replace(task.moving, data=data), doomed=True)


def noise(task: Task) -> Task:
    """The moving foreground holds nothing but noise."""
    random = np.random.default_rng(1).random(task.moving.data.shape).astype(np.float32)
    foreground = task.moving.data > foreground_threshold(task.moving.data)
    data = np.where(foreground, 0.2 + random, 0).astype(np.float32)
    return replace(task, moving=replace(task.moving, data=data), doomed=True)


def ball(task: Task) -> Task:
    """A drawn ball of the same extent."""
    shape = task.moving.data.shape
    axes = np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in shape], indexing="ij", sparse=True)
    data = (sum(a**2 for a in axes) < 1).astype(np.float32) * 100
    return replace(task, moving=replace(task.moving, data=data), doomed=True)


def smooth_rubbish(shape: tuple[int, ...], sigma: float, length: float) -> np.ndarray:
    """A displacement (3, i, j, k) in voxels that has nothing to do with the images."""
    random = np.random.default_rng(2)
    vectors = [gaussian_filter(random.normal(size=shape), sigma) for _ in range(3)]
    found = np.stack(vectors)
    return (found * (length / np.linalg.norm(found, axis=0).mean())).astype(np.float32)


def collapsed(task: Task, sigma: float, length: float) -> Task:
    """A network whose field is rubbish, taken as it is."""
    network = partial(smooth_rubbish, sigma=sigma, length=length)
    return replace(task, network=network, options={"refine": 0})


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


def _changed(task: Task, change: Callable[[np.ndarray], np.ndarray]) -> Task:
    moving = replace(task.moving, data=change(task.moving.data))
    labels = task.moving_labels
    return replace(
        task,
        moving=moving,
        moving_labels=labels and replace(labels, data=change(labels.data)),
    )

"""What can be wrong with a pair: `TROUBLES` to be borne, and `PLANTED` failures besides.

A trouble takes a moving image and its label map and returns both changed. Movements are resampled
onto a grid of the same voxel axes that has room for all of it, so the data change and not the
header; labels go by nearest neighbour. A planted failure is a pair that no rater would accept, or
might: it takes a pair and returns another, whose labels go along, so that Dice can judge the result
unless the failure is one by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from nibabel.affines import from_matvec
from scipy.ndimage import gaussian_filter

from pairs import LabelledPair
from paramorph_rt.geometry import spaces
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume
from paramorph_rt.steps.foreground import foreground_of, foreground_threshold

if TYPE_CHECKING:
    from jaxtyping import Float

    Pair = tuple[Volume, Volume]
    Plant = Callable[["Planted"], "Planted"]

BIAS = 0.3  # of the intensity, at most
NOISE = 0.05  # standard deviation, of the 99.5th percentile


def rotated(image: Volume, labels: Volume, degrees: float, axis: Float[np.ndarray, " 3"]) -> Pair:
    """Turn about the middle of the image; `axis` in the world (RAS), of any length."""
    radians = np.radians(degrees) * np.asarray(axis) / np.linalg.norm(axis)
    turn = sitk.VersorTransform(radians.tolist(), float(np.linalg.norm(radians)))
    return _moved(image, labels, np.array(turn.GetMatrix()).reshape(3, 3))


def rotated_at_random(image: Volume, labels: Volume, degrees: float) -> Pair:
    """Turn about an axis that the image's name chooses: random, and the same every time."""
    rng = np.random.default_rng(list(image.name.encode()))
    return rotated(image, labels, degrees, rng.normal(size=3))


def scaled(image: Volume, labels: Volume, factor: float) -> Pair:
    """Make everything larger or smaller."""
    return _moved(image, labels, factor * np.eye(3))


def coarser(image: Volume, labels: Volume, spacing_mm: float) -> Pair:
    """Resample to thicker voxels, smoothed as a scanner would."""
    shape = np.ceil(np.multiply(image.grid.shape, image.grid.spacing) / spacing_mm)
    directions, middle = image.grid.directions, _middle(image.grid)
    grid = Grid.from_spacing(shape, spacing_mm, directions, centre=middle)
    return _on_grid(image, labels, grid, np.eye(4))


def reoriented(image: Volume, labels: Volume, orientation: str) -> Pair:
    """The same voxels in the same places, stored along other axes."""

    def stored(volume: Volume) -> Volume:
        data, grid = spaces.reoriented(volume.data, volume.grid, orientation)
        return Volume(np.ascontiguousarray(data), grid, volume.name)

    return stored(image), stored(labels)


def biased(image: Volume, labels: Volume) -> Pair:
    """Multiply by a field that falls from 1 + BIAS to 1 - BIAS from one corner to the other."""
    i, j, k = np.ix_(*[np.linspace(-1, 1, n) for n in image.grid.shape])
    field = 1 + BIAS * np.sin((i + j + k) * np.pi / 6)
    return Volume((image.data * field).astype(np.float32), image.grid, image.name), labels


def noisy(image: Volume, labels: Volume) -> Pair:
    """Add noise to the foreground; around it a skull-stripped image has none."""
    rng = np.random.default_rng(list(image.name.encode()))
    noise = rng.normal(scale=NOISE * np.percentile(image.data, 99.5), size=image.grid.shape)
    data = np.where(foreground_of(image), np.abs(image.data + noise), image.data)
    return Volume(data.astype(np.float32), image.grid, image.name), labels


TROUBLES: dict[str, Callable[[Volume, Volume], Pair]] = {
    "rotated 15° about left–right": partial(rotated, degrees=15, axis=(1, 0, 0)),
    "rotated 15° about posterior–anterior": partial(rotated, degrees=15, axis=(0, 1, 0)),
    "rotated 15° about inferior–superior": partial(rotated, degrees=15, axis=(0, 0, 1)),
    "rotated 15° about a random axis": partial(rotated_at_random, degrees=15),
    "10 % larger": partial(scaled, factor=1.1),
    "10 % smaller": partial(scaled, factor=0.9),
    "bias field of ±30 %": biased,
    "noise of 5 %": noisy,
    "resampled to 2 mm": partial(coarser, spacing_mm=2.0),
    "stored as PIR": partial(reoriented, orientation="PIR"),
    "stored as RSP": partial(reoriented, orientation="RSP"),
}


@dataclass(frozen=True, eq=False)
class Planted(LabelledPair):
    """A pair to register and to judge; without labels where both have none in common.

    Attributes:
        doomed: Nobody would accept any result, whatever Dice says.
        options: Further arguments of the registration.
        network: Instead of the models: a network of this displacement, not refined.
    """

    doomed: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    network: Callable[[tuple[int, ...]], np.ndarray] | None = None


def troubled(pair: Planted, trouble: str) -> Planted:
    """One of `TROUBLES`."""
    moving, labels = TROUBLES[trouble](pair.moving, pair.moving_labels)
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
    mask = foreground_of(pair.moving)
    moved = np.roll(mask, [n // 3 for n in mask.shape], (0, 1, 2)).astype(np.uint8)
    return replace(pair, options={"moving_mask": replace(pair.moving, data=moved)})


def label_map(pair: Planted) -> Planted:
    """The moving labels are taken for the image."""
    data = pair.moving_labels.data.astype(np.float32)
    return replace(pair, moving=replace(pair.moving, data=data), doomed=True)


def noise(pair: Planted) -> Planted:
    """The moving foreground holds nothing but noise."""
    random = np.random.default_rng(1).random(pair.moving.data.shape).astype(np.float32)
    data = np.where(foreground_of(pair.moving), 0.2 + random, 0).astype(np.float32)
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
    **{name: partial(troubled, trouble=name) for name in TROUBLES},
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


def same_places(first: Grid, second: Grid) -> bool:
    """Whether two grids have their corners in the same places, in whatever order."""
    corners = []
    for grid in (first, second):
        places = grid.world(list(product(*[(0, n - 1) for n in grid.shape]))).round(2)
        corners.append(set(map(tuple, places + 0.0)))  # -0.0 becomes 0.0
    return corners[0] == corners[1]


def _moved(image: Volume, labels: Volume, matrix: Float[np.ndarray, "3 3"]) -> Pair:
    """Map every point x of the world to matrix (x - middle) + middle."""
    undone, middle = np.linalg.inv(matrix), _middle(image.grid)
    to_source = from_matvec(undone, middle - undone @ middle)
    # The moved corners, seen along the voxel axes, say how much room is needed.
    half_mm = np.multiply(image.grid.shape, image.grid.spacing) / 2
    corners = np.array(list(product((-1, 1), repeat=3))) * half_mm
    directions = image.grid.directions
    reach_mm = np.abs(corners @ directions.T @ matrix.T @ directions).max(axis=0)
    shape = np.ceil(2 * reach_mm / image.grid.spacing)
    grid = Grid.from_spacing(shape, image.grid.spacing, directions, centre=middle)
    return _on_grid(image, labels, grid, to_source)


def _on_grid(image: Volume, labels: Volume, grid: Grid, to_source: np.ndarray) -> Pair:
    return (
        Volume(resample_to_grid(image, grid, to_source), grid, image.name),
        Volume(resample_to_grid(labels, grid, to_source, "nearest"), grid, labels.name),
    )


def _middle(grid: Grid) -> Float[np.ndarray, " 3"]:
    return grid.world((np.array(grid.shape) - 1) / 2)


def _changed(pair: Planted, change: Callable[[np.ndarray], np.ndarray]) -> Planted:
    moving = replace(pair.moving, data=change(pair.moving.data))
    labels = pair.moving_labels
    return replace(
        pair,
        moving=moving,
        moving_labels=labels and replace(labels, data=change(labels.data)),
    )

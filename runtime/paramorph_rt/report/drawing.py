"""Arrays of a slice → WebP pictures and vector paths, as a page holds them."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from contourpy import contour_generator
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from jaxtyping import Float, Integer, UInt8

    Lines = list[
        Float[np.ndarray, "point 2"]
    ]  # columns and rows, from the centre of the first voxel

LONGEST_SIDE = 320  # pixels; finer slices are averaged, which no screen of a report would show
QUALITY = 86  # of WebP, where brains show no trace of the coding
GRID_STEP_MM = 8.0
_SHORTEST_OUTLINE = 12  # pixels; shorter contours of an image are noise

# Black in the middle, so that what agrees is quiet; blue and orange differ for all kinds of sight.
DIFFERENCE_COLOURS = ("#9fd4ff", "#2f7fd0", "#000000", "#d9741a", "#ffe0a3")
DIFFERENCE_RANGE = 0.6  # of the window, at the ends of the scale
JACOBIAN_COLOURS = ("#0b3c7d", "#4b93d1", "#f3f3f1", "#d96a4a", "#7d1120")
JACOBIAN_OCTAVES = 2.0  # log2 of the determinant at the ends of the scale: a quarter to fourfold
FOLDED_COLOUR = "#f6e600"
FIXED_COLOUR, MOVING_COLOUR = "#ffb000", "#35c4f0"  # of contours


def grey(image: Float[np.ndarray, "column row"]) -> UInt8[np.ndarray, "row column"]:
    """0 to 1 → black to white."""
    return (255 * image.T + 0.5).astype(np.uint8)


def difference(
    image: Float[np.ndarray, "column row"], fixed: Float[np.ndarray, "column row"]
) -> UInt8[np.ndarray, "row column 3"]:
    """Image minus fixed image, each within its window: blue where darker, orange where brighter."""
    return coloured((image - fixed) / DIFFERENCE_RANGE, DIFFERENCE_COLOURS)


def jacobian(determinant: Float[np.ndarray, "column row"]) -> UInt8[np.ndarray, "row column 3"]:
    """Logarithm of the determinant as a colour; folds (≤ 0) in one of their own."""
    folded = determinant <= 0
    octaves = np.log2(np.where(folded, 1, determinant)) / JACOBIAN_OCTAVES
    picture = coloured(octaves, JACOBIAN_COLOURS)
    picture[folded.T] = rgb(FOLDED_COLOUR)
    return picture


def coloured(
    values: Float[np.ndarray, "column row"], colours: Sequence[str]
) -> UInt8[np.ndarray, "row column 3"]:
    """Map -1 to 1 to evenly spaced colours, linearly in between."""
    stops = np.linspace(-1, 1, len(colours))
    table = np.array([rgb(colour) for colour in colours], dtype=np.float32)
    channels = [np.interp(values.T, stops, table[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def rgb(colour: str) -> tuple[int, int, int]:
    """Bytes of a colour such as "#0b3c7d"."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue


def data_uri(picture: UInt8[np.ndarray, "row column *channel"]) -> str:
    """A picture as a WebP within a `data:` address."""
    image = Image.fromarray(picture)
    if (factor := -(-max(image.size) // LONGEST_SIDE)) > 1:
        image = image.reduce(factor)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def label_lines(labels: Integer[np.ndarray, "column row"]) -> dict[int, Lines]:
    """Contours of each label, midway between its voxels and others."""
    found = {}
    for label in np.unique(labels[labels != 0]):
        mask = labels == label
        columns, rows = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        window = np.pad(mask[columns[0] : columns[-1] + 1, rows[0] : rows[-1] + 1], 1)
        corner = np.array([columns[0] - 1, rows[0] - 1])
        lines: Any = contour_generator(z=window.T.astype(np.float32)).lines(0.5)
        found[int(label)] = [line + corner for line in lines]
    return found


def outline_lines(outline: Float[np.ndarray, "column row"]) -> Lines:
    """Contours at 0 of what `Plane.outline` holds."""
    padded = np.pad(outline, 1, constant_values=-1)
    lines: Any = contour_generator(z=padded.T).lines(0.0)
    return [line - 1 for line in lines if _length(line) >= _SHORTEST_OUTLINE]


def lattice_lines(lattice: Float[np.ndarray, "2 column row"], stride: int = 1) -> Lines:
    """Where the lines of a regular grid in the moving image cross the slice.

    Args:
        lattice: Position in the moving image along columns and rows, in mm.
        stride: Look at every so many voxels.
    """
    lines: Lines = []
    for coordinate in lattice[:, ::stride, ::stride]:
        generator: Any = contour_generator(z=coordinate.T)
        # Half a step off the first voxel: there a line would run along the slice's edge.
        first = (np.ceil(coordinate.min() / GRID_STEP_MM - 0.5) + 0.5) * GRID_STEP_MM
        for level in np.arange(first, coordinate.max(), GRID_STEP_MM):
            lines += [stride * line for line in generator.lines(level)]
    return lines


def path(lines: Lines, unit: int) -> str:
    """SVG path data in whole parts of a voxel; straight runs become one step.

    Args:
        lines: Columns and rows, where (0, 0) is the centre of a slice's first voxel.
        unit: How many parts a voxel has.
    """
    parts = []
    for line in lines:
        points = np.rint(unit * (line + 0.5)).astype(int)
        steps = np.diff(points, axis=0)
        steps = steps[steps.any(axis=1)]
        if not len(steps):
            continue
        turns = np.flatnonzero((steps[1:] != steps[:-1]).any(axis=1)) + 1
        runs = np.add.reduceat(steps, np.r_[0, turns])
        moves = "".join(f"{dx}{dy}" if dy < 0 else f"{dx} {dy}" for dx, dy in _spaced(runs))
        parts.append(f"M{points[0][0]} {points[0][1]}l{moves.lstrip()}")
    return "".join(parts)


def _spaced(runs: np.ndarray) -> Iterable[tuple[str, int]]:
    return ((str(dx) if dx < 0 else f" {dx}", dy) for dx, dy in runs.tolist())


def _length(line: np.ndarray) -> float:
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())

"""Landmark files: CSV, and those of 3D Slicer (.fcsv, .mrk.json, exported tables)."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import EvaluationError
from ..geometry.spaces import flip_vectors
from ..system.files import parse_json, read_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from ..geometry.spaces import Grid

SPACES = ("RAS", "LPS", "voxel")
# Slicer before 4.11 wrote 0 and 1.
_SLICER_SPACES = {"0": "RAS", "1": "LPS", "RAS": "RAS", "LPS": "LPS"}
_AXES = {("x", "y", "z"): None, ("r", "a", "s"): "RAS", ("l", "p", "s"): "LPS"}
_NAME_COLUMNS = ("label", "name", "id")


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Named points of one image.

    Attributes:
        points_mm: World mm, RAS+.
        names: One per point; empty where the file has none, or has one twice.
        name: What messages call the file.
    """

    points_mm: Float[np.ndarray, "n 3"]
    names: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class _Table:
    points: list[list[float]]
    names: list[str]
    space: str | None  # None if the file does not say


def load_landmarks(
    path: str | Path, space: str | None = None, grid: Grid | None = None
) -> Landmarks:
    """Read landmarks into RAS millimetres.

    A CSV has three columns of numbers, or a header with x, y, z (or r, a, s, or l, p, s, which
    also say the space) and perhaps label, name or id; lines that start with # are comments, of
    which `# CoordinateSystem = LPS` is understood.

    Args:
        path: .csv, .tsv, .txt, .fcsv or .mrk.json.
        space: One of `SPACES`, where the file does not say: world mm, or indices of voxel centres
            in `grid`, from 0.
        grid: Of the image in which they were set; needed for "voxel".

    Raises:
        EvaluationError: No such file, no landmark in it, or its space is unknown or contradicted.
    """
    path = Path(path)
    text = read_text(path, "a landmark file", EvaluationError)
    try:
        table = _from_slicer(text, path.name) if path.suffix == ".json" else _from_csv(text)
        points = np.array(table.points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
            raise ValueError("no three finite coordinates per landmark")
    except EvaluationError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, csv.Error) as err:
        raise EvaluationError(
            f"{path.name}: expected landmarks as a CSV with columns x, y, z or as a 3D Slicer "
            f"markups file, got something else ({err}); convert it first."
        ) from err
    space = _agreed(path.name, table.space, space)
    if space == "voxel":
        if grid is None:
            raise EvaluationError(
                f"{path.name}: expected the image whose voxels the landmarks count, got none; pass "
                "the image too."
            )
        points = grid.world(points)
    elif space == "LPS":
        points = flip_vectors(points)
    names = table.names if len(set(table.names)) == len(points) else []
    return Landmarks(points, tuple(names), path.name)


def paired(fixed: Landmarks, moving: Landmarks) -> tuple[Landmarks, Landmarks]:
    """Bring the landmarks of two images into one order, with one set of names.

    By name where both files have the same ones; else by their order in the files.

    Raises:
        EvaluationError: The two numbers of landmarks differ.
    """
    if len(fixed.points_mm) != len(moving.points_mm):
        raise EvaluationError(
            f"{moving.name}: expected as many landmarks as in {fixed.name}, "
            f"{len(fixed.points_mm)}, got {len(moving.points_mm)}; leave only those that both have."
        )
    names = fixed.names or moving.names
    names = names or tuple(str(n + 1) for n in range(len(fixed.points_mm)))
    order = list(range(len(names)))
    if set(fixed.names) == set(moving.names) and fixed.names:
        order = [moving.names.index(name) for name in names]
    return (
        Landmarks(fixed.points_mm, names, fixed.name),
        Landmarks(moving.points_mm[order], names, moving.name),
    )


def _agreed(name: str, stated: str | None, given: str | None) -> str:
    if stated is None and given is None:
        raise EvaluationError(
            f"{name}: expected a file that says whether its landmarks are RAS or LPS, got none "
            "that does; pass --landmark-space (ANTs and ITK write LPS, nibabel and FreeSurfer RAS)."
        )
    if stated and given and stated != given:
        raise EvaluationError(
            f"{name}: expected landmarks in {given}, as --landmark-space says, got a file that "
            f"says {stated}; leave the option out, or name the other file's alone, such as by "
            "--moving-landmark-space."
        )
    space = stated or given
    assert space in SPACES
    return space


def _from_slicer(text: str, name: str) -> _Table:
    (markup,) = parse_json(text, name, EvaluationError)["markups"]
    points: list[dict[str, Any]] = markup["controlPoints"]
    missing = [p["label"] for p in points if p.get("positionStatus", "defined") != "defined"]
    if missing:
        raise ValueError(f"no position for {missing[0]}")
    return _Table(
        [point["position"] for point in points],
        [str(point.get("label", "")) for point in points],
        _SLICER_SPACES[markup["coordinateSystem"]],
    )


def _from_csv(text: str) -> _Table:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    comments = [line.lstrip("# ") for line in lines if line.startswith("#")]
    header = {
        key.strip().lower(): value.strip()
        for key, _, value in (comment.partition("=") for comment in comments)
    }
    space = _SLICER_SPACES[header["coordinatesystem"]] if "coordinatesystem" in header else None
    lines = [line for line in lines if not line.startswith("#")]
    delimiter = next((d for d in ",;\t" if lines and d in lines[0]), " ")
    rows = list(csv.reader(lines, delimiter=delimiter, skipinitialspace=True))
    columns = header["columns"].split(",") if "columns" in header else None
    if columns is None and not _are_numbers(rows[0][:3]):
        columns, rows = rows[0], rows[1:]
    columns = [column.strip().lower() for column in columns or ("x", "y", "z")]
    axes = next((axes for axes in _AXES if set(axes) <= set(columns)), None)
    if axes is None:
        raise ValueError(f"columns {', '.join(columns)}")
    # The name that people gave stands before an automatic id.
    naming = next((column for column in _NAME_COLUMNS if column in columns), None)
    return _Table(
        [[float(row[columns.index(axis)]) for axis in axes] for row in rows],
        [row[columns.index(naming)] for row in rows] if naming else [],
        space or _AXES[axes],
    )


def _are_numbers(words: Sequence[str]) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True

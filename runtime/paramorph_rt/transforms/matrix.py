"""Plain text of a 4×4 matrix, as FSL and NiftyReg write affines; they differ in what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import TransformError
from ..geometry.transform import Affine
from ..system.files import read_text

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float


def read_matrix(path: Path) -> Float[np.ndarray, "4 4"]:
    """Read four rows of four numbers.

    Raises:
        TransformError: The file holds something else, or a matrix without an inverse.
    """
    text = read_text(path, "a transform", TransformError)
    try:
        rows = [line.split("#")[0].split() for line in text.splitlines()]
        matrix = np.array([row for row in rows if row], dtype=np.float64)
    except ValueError as err:
        raise TransformError(
            f"{path.name}: expected four rows of four numbers, got other text; check that it is "
            "the right file."
        ) from err
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise TransformError(
            f"{path.name}: expected four rows of four numbers, got shape {matrix.shape}; check "
            "that it is the right file."
        )
    Affine(matrix).check(path.name)
    return matrix


def write_matrix(path: Path, matrix: Float[np.ndarray, "4 4"]) -> None:
    """Write four rows of four numbers, with all the digits of a double."""
    np.savetxt(path, matrix, fmt="%.17g")

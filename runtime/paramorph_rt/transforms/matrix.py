"""Plain text of a 4×4 matrix, as FSL and NiftyReg write affines; they differ in what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import TransformError
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
    check_affine(matrix, path.name)
    return matrix


def write_matrix(path: Path, matrix: Float[np.ndarray, "4 4"]) -> None:
    """Write four rows of four numbers, with all the digits of a double."""
    np.savetxt(path, matrix, fmt="%.17g")


def check_affine(matrix: Float[np.ndarray, "4 4"], name: str) -> None:
    """Refuse a matrix that maps space onto less than space.

    Raises:
        TransformError: Not finite, the last row is not 0 0 0 1, or there is no inverse.
    """
    usable = np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) >= 1e-9
    if not (usable and np.allclose(matrix[3], (0, 0, 0, 1))):
        raise TransformError(
            f"{name}: expected an invertible affine with last row 0 0 0 1, got "
            f"{matrix.round(6).tolist()}; check that it is the right file."
        )

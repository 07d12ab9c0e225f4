"""Distance between corresponding landmarks: the target registration error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry.transform import as_transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from ..geometry.transform import Transform


def target_registration_error(
    fixed_mm: Float[np.ndarray, "n 3"],
    moving_mm: Float[np.ndarray, "n 3"],
    names: Sequence[str],
    transforms: Sequence[Transform] = (),
) -> dict[str, Any]:
    """How far the transformed fixed landmarks are from the moving ones, in mm.

    Args:
        fixed_mm: World mm (RAS) in the fixed image.
        moving_mm: The corresponding points in the moving image, world mm (RAS).
        names: One per landmark, no two the same.
        transforms: Fixed → moving, in the order in which a fixed point passes them; none compares
            the landmarks where they are.

    Returns:
        "mean", "median", "p95" (95th percentile) and "max", None without any landmark that counts;
        "outside", how many do not count because they leave a field's grid on the way; and
        "landmarks", the error of each by name, None for one outside.
    """
    error = np.linalg.norm(map_points(fixed_mm, transforms) - moving_mm, axis=1)
    inside = error[~np.isnan(error)]
    table: dict[str, Any] = dict.fromkeys(("mean", "median", "p95", "max"))
    if inside.size:
        median, p95, highest = np.percentile(inside, [50, 95, 100]).tolist()
        table |= {"mean": float(inside.mean()), "median": median, "p95": p95, "max": highest}
    table["outside"] = int(error.size - inside.size)
    table["landmarks"] = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(names, error, strict=True)
    }
    return table


def map_points(
    points_mm: Float[np.ndarray, "n 3"], transforms: Sequence[Transform]
) -> Float[np.ndarray, "n 3"]:
    """Send points through transforms; fields are interpolated linearly.

    Args:
        points_mm: World mm (RAS).
        transforms: In the order in which a point passes them.

    Returns:
        World mm (RAS); NaN for a point that came to lie outside a field's grid.
    """
    points = np.array(points_mm, dtype=np.float64)
    for transform in transforms:
        points = as_transform(transform).map(points)
    return points

"""Distance between landmarks that should be in the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from ..geometry.spaces import flip_vectors, to_sitk

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float

    from ..transforms import Transform


def target_registration_error(
    fixed_mm: Float[np.ndarray, "n 3"],
    moving_mm: Float[np.ndarray, "n 3"],
    names: Sequence[str],
    transforms: Sequence[Transform] = (),
) -> dict[str, Any]:
    """How far the transformed fixed landmarks are from the moving ones, in mm.

    Args:
        fixed_mm: World mm (RAS) in the fixed image.
        moving_mm: The same places in the moving image, world mm (RAS).
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
        if isinstance(transform, np.ndarray):
            points = points @ transform[:3, :3].T + transform[:3, 3]
        else:
            image = to_sitk(transform.vectors_mm, transform.grid)
            points = points + np.array([_sample(image, point) for point in points]).reshape(-1, 3)
    return points


def _sample(field: sitk.Image, point_mm: Float[np.ndarray, " 3"]) -> Float[np.ndarray, " 3"]:
    """A displacement field of ITK at a point, both RAS for us; NaN outside."""
    lps = flip_vectors(point_mm)
    index = np.array(field.TransformPhysicalPointToContinuousIndex(lps.tolist()))
    # ITK takes half a voxel around the outermost ones for inside, and goes on with their values.
    if not ((index >= -0.5) & (index <= np.array(field.GetSize()) - 0.5)).all():
        return np.full(3, np.nan)
    return flip_vectors(np.array(field.EvaluateAtContinuousIndex(index.tolist(), sitk.sitkLinear)))

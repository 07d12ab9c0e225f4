"""A picture of one registration on the network grid, to see at a glance whether training works."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from jaxtyping import Float

    Volume = Float[np.ndarray, "d h w"]


def save_picture(
    path: Path,
    moving: Volume,
    fixed: Volume,
    warped: Volume,
    displacement_vox: Float[np.ndarray, "3 d h w"],
) -> None:
    """Three middle planes: moving, fixed, warped, both differences, and the deformed grid."""
    columns = {
        "moving": moving,
        "fixed": fixed,
        "warped": warped,
        "moving - fixed": moving - fixed,
        "warped - fixed": warped - fixed,
    }
    figure = Figure(figsize=(15, 8), layout="constrained")
    axes = figure.subplots(3, len(columns) + 1)
    for axis in range(3):
        middle = fixed.shape[axis] // 2
        for ax, (title, volume) in zip(axes[axis], columns.items(), strict=False):
            difference = " - " in title
            ax.imshow(
                volume.take(middle, axis).T,
                origin="lower",
                cmap="RdBu" if difference else "gray",
                vmin=-0.5 if difference else 0,
                vmax=0.5 if difference else 1,
            )
            ax.set_title(title if axis == 0 else "")
        _draw_grid(axes[axis, -1], displacement_vox, axis, middle)
        axes[axis, -1].set_title("grid" if axis == 0 else "")
    for ax in axes.flat:
        ax.set_axis_off()
    figure.savefig(path, dpi=70)


def _draw_grid(ax, displacement_vox: Float[np.ndarray, "3 d h w"], axis: int, middle: int) -> None:
    """Where the lines of a regular grid of the fixed image lie in the moving one, in the plane."""
    first, second = (other for other in range(3) if other != axis)
    plane = displacement_vox.take(middle, axis + 1)
    x, y = np.meshgrid(*[np.arange(n) for n in plane.shape[1:]], indexing="ij")
    x, y = x + plane[first], y + plane[second]
    for line in range(0, x.shape[0], 4):
        ax.plot(x[line], y[line], color="black", linewidth=0.4)
    for line in range(0, x.shape[1], 4):
        ax.plot(x[:, line], y[:, line], color="black", linewidth=0.4)
    ax.set_aspect("equal")

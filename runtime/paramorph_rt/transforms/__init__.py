"""Reading and writing transforms: one file format per module, all maps from fixed to moving."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import TransformError
from ..geometry.spaces import Grid
from ..geometry.transform import Transform as Transform


@dataclass(frozen=True, eq=False)
class Images:
    """Grids of the two images that a transform connects.

    Some formats measure in an image's own axes, or record where it lies; a file of theirs means
    nothing without. Reading or writing one gets them here.

    Attributes:
        fixed: Grid of the fixed image, if known.
        moving: Grid of the moving image, if known.
    """

    fixed: Grid | None = None
    moving: Grid | None = None

    def grid(self, role: str, path: object) -> Grid:
        """The grid of the "fixed" or "moving" image.

        Raises:
            TransformError: It is not known.
        """
        grid: Grid | None = getattr(self, role)
        if grid is None:
            raise TransformError(
                f"{path}: expected the {role} image, which this format refers to, got none; "
                f"pass --{role}."
            )
        return grid

"""Station 2 of a registration: the affine that everything starts from, and what the images show."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..quality import checks
from ..quality.looks import look_of
from ..system.threads import mapped
from .affine import Alignment, align_masked

if TYPE_CHECKING:
    from typing import Literal

    from jaxtyping import Float

    from ..quality.flags import Flag
    from ..quality.looks import Look
    from .affine import AffineKind
    from .load import Images


@dataclass(frozen=True, eq=False)
class Start:
    """Where a registration starts.

    Attributes:
        affine: Fixed world mm → moving world mm (RAS).
        alignment: Of the affine search; None without a search.
        moving: What the moving image looks like, as far as its mask leaves it.
        fixed: The same for the fixed image.
        as_scanned: Whether both images should lie in about the same way, as nothing else is given.
    """

    affine: Float[np.ndarray, "4 4"]
    alignment: Alignment | None
    moving: Look
    fixed: Look
    as_scanned: bool

    def flags(self, images: Images) -> list[Flag]:
        """What looks wrong before the pair is registered."""
        return [
            *(self.alignment.flags if self.alignment else ()),
            *checks.placed(images.moving, "moving"),
            *checks.placed(images.fixed, "fixed"),
            *checks.content(self.moving, "moving"),
            *checks.content(self.fixed, "fixed"),
            *checks.of_pair(self.moving, self.fixed, poses=self.as_scanned),
            *checks.identical(images.moving, images.fixed),
        ]


def align(
    images: Images,
    kind: AffineKind | Literal["none"],
    initial: Float[np.ndarray, "4 4"] | None,
) -> Start:
    """Search for the affine, and look at both images meanwhile.

    Args:
        images: The pair.
        kind: Of the affine; "none" takes `initial` as it is.
        initial: Fixed world mm → moving world mm (RAS), where the search starts; None is where the
            images lie.

    Raises:
        AlignmentError: The two images do not overlap.
    """
    with ThreadPoolExecutor(1) as meanwhile:
        looking = meanwhile.submit(_looks, images)
        if kind == "none":
            alignment, affine = None, np.eye(4) if initial is None else initial
        else:
            alignment = align_masked(images.masked_moving, images.masked_fixed, kind, initial)
            affine = alignment.affine
    moving, fixed = looking.result()
    return Start(affine, alignment, moving, fixed, kind != "none" and initial is None)


def _looks(images: Images) -> list[Look]:
    return mapped(look_of, (images.masked_moving.image, images.masked_fixed.image))

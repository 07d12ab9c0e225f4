"""Checks of a pair before it is registered that need no model: is there anything to register?

Each has its limit here, with the data it comes from; `benchmarks/quality.py` counts how often they
fire where they should and where they should not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .domain import TURNED_GAIN, TURNS
from .flags import Flag
from .looks import likeness

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..images.volume import Volume
    from .looks import Look

#: Of neighbouring voxels exactly alike: of 70 scans the most is 0.12 (one in 8 bits); of 59 label
#: maps the least is 0.40.
MOST_FLAT = 0.3
#: Of the foreground that has one intensity: scans reach 0.03; a background that is not the darkest
#: thing in an image takes 0.8.
MOST_COMMON = 0.3
#: Correlation of neighbours: scans have at least 0.7, with 5 % noise too; noise alone has 0.
LEAST_SMOOTH = 0.3
#: Moving size to fixed size, or the other way round: newborn to adult is 0.6.
LEAST_SIZE_RATIO = 0.5
#: Of a voxel's side: of 943 files, 4 have both forms and a code with which ITK takes the other one,
#: and they differ by 0.00003.
MOST_DOUBT = 0.5
#: Two maps have to be that much alike in one way at least, before one of them is taken for turned.
LEAST_LIKENESS_OF_TURNED = 0.5


def content(look: Look, which: str) -> Iterator[Flag]:
    """Whether an image holds anything that can be registered."""
    if look.flat > MOST_FLAT:
        yield Flag(
            "content",
            which,
            f"{look.name}: expected a scan, got an image in which {100 * look.flat:.0f} % of "
            "neighbouring voxels are exactly alike, as in a label map or a drawn shape; check the "
            "file.",
            look.flat,
            MOST_FLAT,
        )
    elif look.commonest > MOST_COMMON:
        yield Flag(
            "background",
            which,
            f"{look.name}: expected a background darker than everything else, got "
            f"{100 * look.commonest:.0f} % of the foreground with one intensity; pass a mask, or "
            "set the background to the lowest intensity.",
            look.commonest,
            MOST_COMMON,
        )
    elif look.smooth < LEAST_SMOOTH:
        yield Flag(
            "noise",
            which,
            f"{look.name}: expected a scan, got noise (neighbouring voxels correlate by "
            f"{look.smooth:.2f}, usually by at least 0.7); check the file.",
            look.smooth,
            LEAST_SMOOTH,
        )


def of_pair(moving: Look, fixed: Look, *, poses: bool = True) -> Iterator[Flag]:
    """Whether two images belong together.

    Args:
        moving: Its look.
        fixed: Its look.
        poses: Whether both should lie in about the same way, as nothing else was given.
    """
    ratio = moving.size_mm / fixed.size_mm
    if min(ratio, 1 / ratio) < LEAST_SIZE_RATIO:
        yield Flag(
            "size",
            "pair",
            f"{moving.name}: expected about the size of {fixed.name}, got {moving.size_mm:.0f} mm "
            f"and {fixed.size_mm:.0f} mm; check that both show the same part of the body.",
            min(ratio, 1 / ratio),
            LEAST_SIZE_RATIO,
        )
    if not poses:
        return
    as_they_lie = likeness(moving.ranks, fixed.ranks)
    turned = {
        name: likeness(np.flip(moving.ranks, axes), fixed.ranks) for name, axes in TURNS.items()
    }
    best = max(turned, key=lambda name: turned[name])
    gain = turned[best] - as_they_lie
    if gain >= TURNED_GAIN and turned[best] >= LEAST_LIKENESS_OF_TURNED:
        yield Flag(
            "orientation",
            "pair",
            f"{moving.name}: expected to lie as {fixed.name} does, got images that are more alike "
            f"with {best} of one swapped ({turned[best]:.2f} instead of {as_they_lie:.2f}); check "
            "both headers.",
            gain,
            TURNED_GAIN,
        )


def placed(volume: Volume, which: str) -> Iterator[Flag]:
    """Whether all readers of a file see it in the same place."""
    doubt = volume.grid.doubt_mm / volume.grid.spacing.min()
    if doubt > MOST_DOUBT:
        yield Flag(
            "placed",
            which,
            f"{volume.name}: expected sform and qform to say the same, got "
            f"{volume.grid.doubt_mm:.1f} mm between them; the sform is taken here, and the qform "
            "by ITK and ANTs: repair the header.",
            doubt,
            MOST_DOUBT,
        )


def identical(moving: Volume, fixed: Volume) -> Iterator[Flag]:
    """Whether both are the same image, whatever their files are called."""
    if moving.grid.matches(fixed.grid) and np.array_equal(moving.data, fixed.data):
        yield Flag(
            "identical",
            "pair",
            f"{moving.name}: expected another image than {fixed.name}, got the same voxels; check "
            "the paths.",
        )

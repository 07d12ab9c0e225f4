"""What a model was made for, as its bundle's manifest says, and whether an image is of that kind.

The entry ``domain`` of a manifest is optional, and so is each of its parts: a model for any
contrast has no map, one for cut-outs of any size no volume. `export/describe_domain.py` writes it
from images like those of the training.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ..errors import BundleError
from .flags import Flag
from .looks import CELLS, asymmetry, likeness
from .tilt import straightened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float

    from ..bundle import Bundle
    from .looks import Look

    # Name of the flag, sentence, value, limit.
    Found = Iterator[tuple[str, str, float, float]]

# What nibabel raises besides, where a map is none.
UNREADABLE = (ImageFileError, HeaderDataError)
#: How much more an image has to be like the map when it is turned over, to be taken for that.
TURNED_GAIN = 0.15
#: The same for right and left: correlation of an image's asymmetry with the map's. Of 29 brains
#: that lie as they should, the lowest is -0.20.
LEAST_HANDEDNESS = -0.28
#: Where an image is less like the map than that, its asymmetry says nothing.
LEAST_FOR_HANDEDNESS = 0.7
#: Ways to lie wrong, by the axes of a map that are turned round.
TURNS: dict[str, tuple[int, ...]] = {
    "top and bottom": (2,),
    "front and back": (1,),
    "front and back, top and bottom": (1, 2),
}


@dataclass(frozen=True, eq=False)
class Domain:
    """Images that a model was made for.

    Attributes:
        of: In words, such as "skull-stripped adult T1 brains".
        volume_ml: Least and most of the foreground.
        spacing_mm: The coarsest voxel side.
        at_border: Least and most of the image's border that is foreground, 0 to 1.
        least_likeness: With the map, of an image that lies straight.
        ranks: The map: mean of those of the training's images (see `looks`).
    """

    of: str
    volume_ml: tuple[float, float] | None = None
    spacing_mm: float | None = None
    at_border: tuple[float, float] | None = None
    least_likeness: float = 0.0
    ranks: Float[np.ndarray, "20 24 20"] | None = None


def domain_of(bundle: Bundle) -> Domain | None:
    """The domain that a bundle describes; None if it does not.

    Raises:
        BundleError: An entry or a map that cannot be used, or a file that was altered.
    """
    entry = bundle.domain
    if entry is None:
        return None
    try:
        return Domain(
            of=str(entry["of"]),
            volume_ml=_range(entry.get("volume_ml")),
            spacing_mm=None if entry.get("spacing_mm") is None else float(entry["spacing_mm"]),
            at_border=_range(entry.get("at_border")),
            least_likeness=float(entry.get("least_likeness", 0)),
            ranks=None if entry.get("map") is None else _map(bundle, str(entry["map"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OSError, *UNREADABLE) as err:
        raise BundleError(
            f"{bundle.name}: expected a domain as export/describe_domain.py writes it, got one "
            f"that cannot be used ({type(err).__name__}: {err}); write it again."
        ) from err


def misfits(look: Look, which: str, domain: Domain) -> Iterator[Flag]:
    """Why an image is not of a domain, or may not be; what takes longest to find out comes last.

    Args:
        look: Of the image.
        which: "moving" or "fixed".
        domain: Of the model.
    """
    for check in (_of_size, _of_border, _of_spacing, _of_contrast):
        for name, sentence, value, limit in check(look, domain):
            yield Flag(name, which, f"{look.name}: {sentence}", value, limit)


def _of_size(look: Look, domain: Domain) -> Found:
    if domain.volume_ml is None:
        return
    least, most = domain.volume_ml
    if look.volume_ml > most:
        yield (
            "large",
            f"expected {domain.of} ({least:.0f} to {most:.0f} ml), got a foreground of "
            f"{look.volume_ml:.0f} ml; pass --strip where a skull is in it, or a mask that leaves "
            "out what does not belong to it.",
            look.volume_ml,
            most,
        )
    elif look.volume_ml < least:
        yield (
            "small",
            f"expected {domain.of} ({least:.0f} to {most:.0f} ml), got a foreground of "
            f"{look.volume_ml:.0f} ml; check that it shows all of that.",
            look.volume_ml,
            least,
        )


def _of_border(look: Look, domain: Domain) -> Found:
    if domain.at_border is None:
        return
    least, most = domain.at_border
    if not least <= look.at_border <= most:
        yield (
            "border",
            f"expected {domain.of}, got an image whose border is foreground to "
            f"{100 * look.at_border:.0f} % (expected {100 * least:.0f} to {100 * most:.0f} %), as "
            f"of {'a cut-out of a larger body' if look.at_border > most else 'a whole body'}; "
            "check what it shows.",
            look.at_border,
            most if look.at_border > most else least,
        )


def _of_spacing(look: Look, domain: Domain) -> Found:
    if domain.spacing_mm is not None and look.spacing_mm[1] > domain.spacing_mm:
        yield (
            "coarse",
            f"expected voxels of at most {domain.spacing_mm:g} mm, got {look.spacing_mm[1]:.2f} "
            "mm; small structures cannot be matched.",
            look.spacing_mm[1],
            domain.spacing_mm,
        )


def _of_contrast(look: Look, domain: Domain) -> Found:
    """One of: lies upside down, is of another contrast or anatomy, is mirrored."""
    if domain.ranks is None:
        return
    ranks = straightened(look, domain.ranks, domain.least_likeness)
    as_it_lies = likeness(ranks, domain.ranks)
    turned = {
        name: likeness(np.flip(look.ranks, axes), domain.ranks) for name, axes in TURNS.items()
    }
    best = max(turned, key=lambda name: turned[name])
    if turned[best] >= max(domain.least_likeness, as_it_lies + TURNED_GAIN):
        yield (
            "orientation",
            f"expected {domain.of} to lie as the header says, got one that looks as if {best} "
            f"were swapped (likeness {turned[best]:.2f} so, {as_it_lies:.2f} as it is); check the "
            "header.",
            turned[best] - as_it_lies,
            TURNED_GAIN,
        )
    elif as_it_lies < domain.least_likeness:
        yield (
            "contrast",
            f"expected {domain.of}, got an image of another contrast or anatomy (likeness "
            f"{as_it_lies:.2f}, usually at least {domain.least_likeness:g}).",
            as_it_lies,
            domain.least_likeness,
        )
    elif as_it_lies >= LEAST_FOR_HANDEDNESS:
        hand = likeness(asymmetry(ranks), asymmetry(domain.ranks))
        if hand < LEAST_HANDEDNESS:
            yield (
                "left_right",
                "expected left and right as the header says, got an image whose asymmetry is the "
                f"mirror image of what {domain.of} have ({hand:.2f}); check the header.",
                hand,
                LEAST_HANDEDNESS,
            )


def _range(values: Any) -> tuple[float, float] | None:
    if values is None:
        return None
    least, most = map(float, values)
    return least, most


def _map(bundle: Bundle, file: str) -> Float[np.ndarray, "20 24 20"]:
    """Integers, 0 where there is no foreground."""
    image = nib.Nifti1Image.from_bytes(gzip.decompress(bundle.verified_bytes(file)))
    stored = np.asanyarray(image.dataobj)
    if stored.shape != CELLS:
        raise ValueError(f"a map of {stored.shape} cells where {CELLS} belong")
    return map_from_stored(stored)


def map_from_stored(stored: np.ndarray) -> Float[np.ndarray, "20 24 20"]:
    """Ranks from bytes: 1 to 255 become 0 to 1, and 0 is no foreground."""
    return np.where(stored > 0, (stored - np.float32(1)) / np.float32(254), np.float32("nan"))


def stored_map(ranks: Float[np.ndarray, "20 24 20"]) -> np.ndarray:
    """The other way round."""
    return np.where(np.isnan(ranks), 0, np.rint(np.nan_to_num(ranks) * 254) + 1).astype(np.uint8)

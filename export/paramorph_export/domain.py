"""What a model was made for, described from images, into the manifest of its bundle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np

from paramorph_export.errors import ExportError
from paramorph_rt.bundle import load_bundle
from paramorph_rt.bundle.manifest import with_file, write_manifest
from paramorph_rt.images.volume import load_volume
from paramorph_rt.quality.domain import stored_map
from paramorph_rt.quality.looks import CELLS, look_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jaxtyping import Float

    from paramorph_rt.quality.looks import Look

MAP = "domain.nii.gz"
#: How much smaller, larger and coarser than those described an image may be.
SMALLER, LARGER, COARSER = 0.7, 1.4, 3.0
#: By how much the border's share of foreground may differ.
BORDER = 0.2


def describe(
    images: Sequence[Path],
    of: str,
    least_likeness: float | None,
    volume_ml: Sequence[float] | None = None,
) -> tuple[dict[str, Any], Float[np.ndarray, "20 24 20"] | None]:
    """The entry ``domain`` of a manifest, and the map that goes with it.

    Args:
        images: Like those of the training; skull-stripped where those were.
        of: What they are, in words.
        least_likeness: With the map, such as 0.5; None is no map, for models of any contrast.
        volume_ml: Least and most of the foreground; None is of the images, with a margin.

    Raises:
        ExportError: No images.
    """
    if not images:
        raise ExportError("domain: expected images of the training's kind, got none; name some.")
    looks = [look_of(load_volume(path)) for path in images]
    volumes = [look.volume_ml for look in looks]
    borders = [look.at_border for look in looks]
    entry: dict[str, Any] = {
        "of": of,
        "images": len(looks),
        "volume_ml": [*map(round, volume_ml or (SMALLER * min(volumes), LARGER * max(volumes)))],
        "spacing_mm": round(COARSER * max(look.spacing_mm[1] for look in looks), 3),
        "at_border": [
            round(max(0.0, min(borders) - BORDER), 3),
            round(min(1.0, max(borders) + BORDER), 3),
        ],
    }
    if least_likeness is None:
        return entry, None
    return entry | {"least_likeness": least_likeness, "map": MAP}, mean_map(looks)


def mean_map(looks: Sequence[Look]) -> Float[np.ndarray, "20 24 20"]:
    """Mean rank of each cell that is foreground in most images."""
    ranks = np.stack([look.ranks for look in looks])
    count = (~np.isnan(ranks)).sum(axis=0)
    mean = np.nansum(ranks, axis=0) / np.maximum(count, 1)
    return np.where(count > len(looks) / 2, mean, np.nan).astype(np.float32)


def add_domain(
    folder: Path, entry: dict[str, Any], ranks: Float[np.ndarray, "20 24 20"] | None
) -> None:
    """Write it into a bundle: the map first, then the manifest in one step.

    Raises:
        BundleError: No bundle there.
    """
    manifest = {**load_bundle(folder).manifest, "domain": entry}
    if ranks is not None:
        save_map(folder / MAP, ranks)
        manifest = with_file(manifest, folder / MAP)
    write_manifest(folder, manifest)


def save_map(path: Path, ranks: Float[np.ndarray, "20 24 20"]) -> None:
    """As an image along right, anterior and superior; a cell is as large as in an adult brain."""
    image = nib.Nifti1Image(stored_map(ranks), np.diag([7.0, 7.5, 7.0, 1.0]))
    assert image.shape == CELLS
    nib.save(image, path)


def domain_in(folder: Path) -> tuple[dict[str, Any], bytes | None]:
    """What another bundle says of its domain: the entry, and its map as a file's content.

    Raises:
        BundleError: No bundle, or an altered map.
        ExportError: It has no domain.
    """
    bundle = load_bundle(folder)
    entry = bundle.domain
    if entry is None:
        raise ExportError(
            f"{folder}: expected a bundle that describes its domain, got one that does not; run "
            "export/describe_domain.py on it."
        )
    return dict(entry), bundle.verified_bytes(entry["map"]) if "map" in entry else None

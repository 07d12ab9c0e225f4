"""What each kind of image looks like to the checks before a registration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramorph_rt.bundle import default_bundle_path, load_bundle
from paramorph_rt.images.volume import load_labels, load_volume
from paramorph_rt.quality.domain import domain_of, misfits
from paramorph_rt.quality.looks import asymmetry, likeness, look_of
from paramorph_rt.quality.tilt import straightened
from paramorph_rt.steps.foreground import masked
from record import Row
from tables import markdown_table

if TYPE_CHECKING:
    from paramorph_rt.images.volume import Volume
    from paramorph_rt.quality.looks import Look

IMAGES = {
    "brains, training": "brain_t1/train/*_t1.nii.gz",
    "brains": "brain_t1/validation/*_t1.nii.gz",
    "Colin27": "templates/ch2bet.nii.gz",
    "newborns, T1": "neonate/*_T1w_brain.nii.gz",
    "newborns, T2": "neonate/*_T2w_brain.nii.gz",
    "heads, 2 mm": "heads_2mm/*_t1.nii.gz",
    "head at its own resolution": "head_native/*.nii.gz",
    "prostates": "prostate_t2/validation/*_t2.nii.gz",
    "prostates, whole field of view": "prostate_native/*/*_t2.nii.gz",
    "hippocampi": "hippocampus/validation/*_t1.nii.gz",
    "the same heads, their brains": "heads_2mm/*_t1.nii.gz",
    **{
        f"two patients, {contrast.upper()}, background not darkest": (
            f"contrasts/*/{contrast}.nii.gz"
        )
        for contrast in ("t1", "t2", "flair")
    },
}
MASKED = "the same heads, their brains"
IMAGES |= {
    f"label maps, {name}": pattern
    for name, pattern in {
        "brains": "brain_t1/*/*_labels.nii.gz",
        "Colin27's AAL": "templates/aal.nii.gz",
        "newborns": "neonate/*_Segmentation.nii.gz",
        "heads": "heads_2mm/*_labels.nii.gz",
        "synthetic heads": "synthetic_heads/*.nii.gz",
        "prostates": "prostate_t2/validation/*_labels.nii.gz",
        "hippocampi": "hippocampus/validation/*_labels.nii.gz",
    }.items()
}
COLUMNS = (
    ("images", "kind", ""),
    ("number", "images", "d"),
    ("foreground, ml", "volume_ml", ""),
    ("of the border", "at_border", ""),
    ("voxels, mm", "coarsest_mm", ""),
    *((key, key, "") for key in ("likeness", "handedness", "flat", "commonest", "smooth")),
    ("taken for mirrored", "mirrored", "d"),
    ("found if mirrored", "found", "d"),
)


def looks(data: Path) -> Iterator[Row]:
    """Least and most of what the checks measure, for each kind of image."""
    domain = domain_of(load_bundle(default_bundle_path()))
    assert domain is not None
    assert domain.ranks is not None

    def measures(look: Look) -> dict[str, Any]:
        ranks = straightened(look, domain.ranks, domain.least_likeness)
        hands = likeness(asymmetry(ranks), asymmetry(domain.ranks))
        keys = ("volume_ml", "at_border", "flat", "commonest", "smooth")
        more = {"likeness": likeness(ranks, domain.ranks), "handedness": hands}
        return (
            more | {"coarsest_mm": look.spacing_mm[1]} | {key: getattr(look, key) for key in keys}
        )

    def is_taken_for_mirrored(look: Look) -> bool:
        return "left_right" in {flag.name for flag in misfits(look, "moving", domain)}

    for kind, pattern in IMAGES.items():
        paths = sorted(data.glob(pattern))[:15]
        seen = [look_of(_load(path, kind == MASKED)) for path in paths]
        each = [measures(look) for look in seen]
        turned = [replace(look, ranks=look.ranks[::-1]) for look in seen]
        yield {
            "kind": kind,
            "images": len(each),
            **{
                key: [round(float(end(one[key] for one in each)), 3) for end in (min, max)]
                for key in each[0]
            },
            "mirrored": sum(map(is_taken_for_mirrored, seen)),
            "found": sum(map(is_taken_for_mirrored, turned)),
        }


def _load(path: Path, with_mask: bool) -> Volume:
    if not with_mask:
        return load_volume(path)
    return masked(load_volume(path), load_labels(str(path).replace("_t1.nii", "_labels.nii")))


def table(looks: Sequence[Row]) -> str:
    """Least and most over the images of each kind."""
    rows = [
        {k: f"{v[0]:.4g} … {v[1]:.4g}" if isinstance(v, list) else v for k, v in look.items()}
        for look in looks
    ]
    return markdown_table(rows, COLUMNS)

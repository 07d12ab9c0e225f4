"""Names of results as BIDS derivatives have them, and the JSON files beside them.

Source: BIDS 1.11, common derived data types; transforms as fMRIPrep names them (BEP014 is a draft).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import OutputError
from .outputs import Names, Sidecar
from .volume import nifti_name

BIDS_VERSION = "1.11.1"
DATASET = "dataset_description.json"
SIMILAR = "image"  # suffix of an image whose own name tells none
LABELS = "dseg"  # of a label map whose own name tells none
# The folder of a suffix, where it is not anat.
FOLDERS = {
    **dict.fromkeys(("bold", "boldref", "sbref", "cbv"), "func"),
    **dict.fromkeys(("dwi", "dwiref"), "dwi"),
    **dict.fromkeys(("asl", "m0scan"), "perf"),
    "pet": "pet",
}
# What the one volume of a series is called that stands for all.
REFERENCES = {"bold": "boldref", "dwi": "dwiref"}
# Entities that say where an image lay, and those that stand after them.
PLACES = ("tpl", "cohort", "space", "res", "den", "from", "to", "mode")
LAST = ("space", "from", "to", "mode", "seg", "res", "label", "desc")


@dataclass(frozen=True)
class BidsName:
    """An image's name, taken apart.

    Attributes:
        stem: Without what tells the file type.
        entities: Such as {"sub": "01", "desc": "brain"}; empty if the name is none of BIDS.
        suffix: Such as "T1w"; "" if the name is none of BIDS.
    """

    stem: str
    entities: Mapping[str, str]
    suffix: str

    @classmethod
    def of(cls, path: Path) -> BidsName:
        """Take a file's name apart, whatever it is."""
        stem = nifti_name(path.name).removesuffix(".gz").removesuffix(".nii")
        *pairs, suffix = stem.split("_")
        entities = {key: value for key, _, value in (pair.partition("-") for pair in pairs)}
        known = {"sub", "tpl"} & entities.keys() and all(entities.values()) and "-" not in suffix
        return cls(stem, entities, suffix) if known else cls(stem, {}, "")

    def space(self, beside: Mapping[str, str]) -> str:
        """What the image's world is called in a file name that has these entities already."""
        if named := self.entities.get("space") or self.entities.get("tpl"):
            return label(named)
        if not self.suffix:
            return label(self.stem)
        own = {key: value for key, value in self.entities.items() if key not in (*PLACES, "desc")}
        more = [key + value for key, value in own.items() if beside.get(key) != value]
        return label("".join((*more, self.suffix)))


def bids_names(
    moving: Path,
    fixed: Path,
    out_dir: Path,
    *,
    moving_labels: Path | None = None,
    also: Sequence[Path] = (),
    also_labels: Sequence[Path] = (),
    output_grid: str = "fixed",
    series: bool = False,
) -> Names:
    """Names for the results of a pair, in a folder that is a dataset of BIDS derivatives.

    With ``sub-01_T1w.nii.gz`` and ``tpl-MNI152NLin2009cAsym_res-01_T1w.nii.gz`` they are
    ``sub-01/anat/sub-01_space-MNI152NLin2009cAsym_T1w.nii.gz`` and
    ``sub-01/anat/sub-01_from-T1w_to-MNI152NLin2009cAsym_mode-image_xfm.nii.gz``. `from` and `to`
    say how the image moves. Names that are none of BIDS become labels of their letters and digits.

    Args:
        moving: Image that was registered; its entities go on.
        fixed: Image that names the space: by `space-` or `tpl-`, else by its suffix, and by its
            subject and the like where they are other than the moving image's.
        out_dir: Root of the dataset; sidecars name their sources relative to it.
        moving_labels: Label map of the moving image.
        also: More images that are warped along.
        also_labels: The same for label maps.
        output_grid: "fixed", "moving" or a file, which is named by `res-`.
        series: Whether `moving` is a series, of which one volume was registered.

    Raises:
        OutputError: Two results would have one name.
    """
    source, target = BidsName.of(moving), BidsName.of(fixed)
    start, end = source.space(source.entities), target.space(source.entities)
    if start == end:
        start = f"{start}moving"
    subject = {"sub": source.entities.get("sub") or label(source.stem)}
    own = {**subject, **{k: v for k, v in source.entities.items() if k not in PLACES}}
    folder = "/".join(
        [
            *(f"{key}-{own[key]}" for key in ("sub", "ses") if key in own),
            FOLDERS.get(source.suffix, "anat"),
        ]
    )
    placed = {"space": end}
    if output_grid != "fixed":
        placed["res"] = label(BidsName.of(Path(output_grid)).stem)

    def warped(path: Path, suffix: str, **more: str) -> str:
        name = BidsName.of(path)
        theirs = {k: v for k, v in name.entities.items() if k not in PLACES}
        if not name.suffix:
            theirs = own if path == moving else {**own, "desc": label(name.stem)}
        return f"{folder}/{_joined({**theirs, **placed, **more})}_{name.suffix or suffix}.nii.gz"

    def transform(a: str, b: str, ending: str, **more: str) -> str:
        theirs = {k: v for k, v in own.items() if k != "desc"}
        way = {"from": a, "to": b, "mode": "image"}
        return f"{folder}/{_joined({**theirs, **way, **more})}_{ending}"

    image = warped(moving, SIMILAR)
    reference = image
    if series and source.suffix in REFERENCES:
        reference = image.replace(f"_{source.suffix}.nii", f"_{REFERENCES[source.suffix]}.nii")
    elif series:
        reference = warped(moving, SIMILAR, desc="reference")
    along = {path: warped(path, SIMILAR) for path in also}
    along |= {path: warped(path, LABELS) for path in also_labels}
    forward = transform(start, end, "xfm.nii.gz")
    affine = transform(start, end, "xfm.txt", desc="affine")
    composite = transform(start, end, "xfm.h5", desc="composite")
    backward = transform(end, start, "xfm.nii.gz")
    sources = {reference: moving, image: moving, **{name: path for path, name in along.items()}}
    labels = f"{folder}/{_joined({**own, **placed})}_{LABELS}.nii.gz"
    if moving_labels is not None:
        labels = warped(moving_labels, LABELS)
        sources[labels] = moving_labels
    taken = Counter([reference, *([image] if series else []), *along.values()])
    taken.update([labels] if moving_labels else [])
    for name, count in taken.items():
        if count > 1:
            raise OutputError(
                f"{name}: expected a BIDS name for each result, got it for {count} of them; give "
                "the inputs names that differ in an entity or in their suffix."
            )
    root = out_dir.absolute()
    sidecars = {
        _beside(name): Sidecar(name, _of_image(path, fixed, forward, root, placed))
        for name, path in sources.items()
    }
    for name, what in (
        (forward, "Displacement field, affine included"),
        (affine, "Affine transform alone, before the network"),
        (composite, "Displacement field followed by the affine, as ITK's composite transform"),
        (backward, "Displacement field, affine included"),
    ):
        ends = (fixed, moving) if name == backward else (moving, fixed)
        sidecars[_beside(name)] = Sidecar(name, _of_transform(what, ends, root))
    return Names(
        warped=reference,
        displacement=forward,
        composite=composite,
        affine=affine,
        warped_labels=labels,
        inverse=backward,
        series=image,
        also=transform(start, end, "also"),
        also_names={nifti_name(path.name): name for path, name in along.items()},
        metrics=transform(start, end, "metrics.json"),
        report=transform(start, end, "report.html"),
        figures=transform(start, end, "figures"),
        record=transform(start, end, "record.json"),
        sidecars=sidecars,
        shared={DATASET: _dataset()},
    )


def label(text: str) -> str:
    """What BIDS allows as a label: letters and digits."""
    return re.sub(r"[^0-9A-Za-z]", "", text) or "unnamed"


def _joined(entities: Mapping[str, str]) -> str:
    first = [key for key in entities if key not in LAST]
    last = [key for key in LAST if key in entities]
    return "_".join(f"{key}-{entities[key]}" for key in (*first, *last))


def _beside(name: str) -> str:
    """The sidecar's name: the same with another ending."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.partition('.')[0]}.json"


def _of_image(
    source: Path, fixed: Path, transform: str, root: Path, placed: Mapping[str, str]
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "Sources": [_relative(source, root), transform],
        "SpatialReference": _relative(fixed, root),
    }
    if "res" in placed:
        content["Resolution"] = f"Voxels of {placed['res']}, in the space of SpatialReference"
    return content


def _of_transform(what: str, ends: tuple[Path, Path], root: Path) -> dict[str, Any]:
    moving, fixed = (_relative(path, root) for path in ends)
    return {
        "Description": f"{what}; maps points of the image that this moves to onto the image that "
        "it moves (ITK convention, LPS mm)",
        "Sources": [moving, fixed],
        "MovingImage": moving,
        "FixedImage": fixed,
    }


def _dataset() -> dict[str, Any]:
    from . import __version__

    return {
        "Name": "Registrations by ParaMorph",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "paramorph-rt", "Version": __version__}],
    }


def _relative(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path.absolute(), root)).as_posix()

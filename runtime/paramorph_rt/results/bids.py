"""Names of results as BIDS derivatives have them, and the JSON files beside them.

Source: BIDS 1.11, common derived data types; transforms as fMRIPrep names them (BEP014 is a draft).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..images.volume import nifti_name
from .outputs import LINKS, Names, Sidecar

BIDS_VERSION = "1.11.1"
DATASET = "dataset_description.json"
RAW = "raw"  # what the dataset of the moving image is called in BIDS URIs
IGNORE = ".bidsignore"
SIMILAR = "image"  # suffix of an image whose own name tells none
LABELS = "dseg"  # of a label map whose own name tells none
# The folder of a suffix, where it is not anat.
FOLDERS = {
    **dict.fromkeys(("bold", "boldref", "sbref", "cbv"), "func"),
    **dict.fromkeys(("dwi", "dwiref"), "dwi"),
    **dict.fromkeys(("asl", "m0scan"), "perf"),
    "pet": "pet",
}
# Images of which BIDS wants to know whether the skull is in them.
ANATOMICAL = (
    *("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "PDT2", "angio", "T2star"),
    *("FLASH", "PD", "T1map", "T2map", "T1rho", "UNIT1"),
)
# What the one volume of a series is called that stands for all.
REFERENCES = {"bold": "boldref", "dwi": "dwiref"}
# Entities that say where an image lay, and those that stand after them.
PLACES = ("tpl", "cohort", "space", "res", "den", "from", "to", "mode")
LAST = ("space", "from", "to", "mode", "seg", "res", "label", "desc")


# What BIDS has no names for (yet), so that its validator leaves it alone.
IGNORED = """\
# Transforms, for which BIDS has no names yet (BEP014 is a draft)
*_xfm.*
*_xfm/
# Registrations: what was measured, what they were made of, pages and pictures
*_metrics.json
*_record.json
*_report.html
*_figures/
*_also/
# Images whose own names say nothing of what they show
*_image.*
# Many pairs at a glance
summary.*
"""


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
        out_dir: Root of the dataset; sidecars name their sources by BIDS URIs, whose datasets its
            description links to.
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
    for name, times in taken.items():
        if times > 1:
            raise OutputError(
                f"{name}: expected a BIDS name for each result, got it for {times} of them; give "
                "the inputs names that differ in an entity or in their suffix."
            )
    uris = Uris(out_dir)
    sidecars = {
        _beside(name): Sidecar(name, _of_image(path, fixed, forward, uris, placed))
        for name, path in sources.items()
    }
    for name, what in (
        (forward, "Displacement field, affine included"),
        (affine, "Affine transform alone, before the network"),
        (composite, "Displacement field followed by the affine, as ITK's composite transform"),
        (backward, "Displacement field, affine included"),
    ):
        ends = (fixed, moving) if name == backward else (moving, fixed)
        sidecars[_beside(name)] = Sidecar(name, _of_transform(what, ends, uris))
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
        shared={DATASET: _dataset(uris.links), IGNORE: IGNORED},
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


class Uris:
    """Names of files as BIDS URIs, ``bids:DATASET:PATH``, and the links to the datasets in them.

    A dataset keeps the name that the description in the folder of results gives it.

    Source: BIDS 1.11, section BIDS URI.
    """

    def __init__(self, out_dir: Path) -> None:
        self._home = out_dir.absolute()
        self.links = _links_in(self._home / DATASET)
        self._names = {(self._home / target).resolve(): name for name, target in self.links.items()}

    def __call__(self, path: Path) -> str:
        """The URI of a file, wherever it lies."""
        path = path.absolute()
        root = root_of(path)
        where = path.relative_to(root).as_posix()
        if root.resolve() == self._home.resolve():
            return f"bids::{where}"
        return f"bids:{self._name(root)}:{where}"

    def _name(self, root: Path) -> str:
        if root.resolve() not in self._names:
            wanted = label(root.name) if self._names else RAW
            numbers = (f"{wanted}{n or ''}" for n in count())
            name = next(name for name in numbers if name not in self.links)
            self._names[root.resolve()] = name
            self.links[name] = _link(root, self._home)
        return self._names[root.resolve()]


def root_of(path: Path) -> Path:
    """The dataset of a file: where its description is, or above its subject, or its folder."""
    for folder in path.parents:
        if (folder / DATASET).is_file():
            return folder
    subjects = [folder for folder in path.parents if folder.name.startswith("sub-")]
    return subjects[-1].parent if subjects else path.parent


def _links_in(description: Path) -> dict[str, str]:
    try:
        found = json.loads(description.read_text(encoding="utf-8"))[LINKS]
        return {str(name): str(target) for name, target in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # none there, or one of somebody else


def _link(root: Path, home: Path) -> str:
    try:
        return Path(os.path.relpath(root, home)).as_posix()
    except ValueError:  # on another drive of Windows
        return root.as_uri()


def _of_image(
    source: Path, fixed: Path, transform: str, uri: Uris, placed: Mapping[str, str]
) -> dict[str, Any]:
    content: dict[str, Any] = {
        "Description": "Warped by the transform among its sources",
        "Sources": [uri(source), f"bids::{transform}"],
        "SpatialReference": uri(fixed),
    }
    if BidsName.of(source).suffix in ANATOMICAL:
        content["SkullStripped"] = is_skull_stripped(source)
    if "res" in placed:
        content["Resolution"] = f"Voxels of {placed['res']}, in the space of SpatialReference"
    return content


def is_skull_stripped(image: Path) -> bool:
    """As the image's own sidecar says, or else its name; raw images are not."""
    sidecar = image.with_name(f"{BidsName.of(image).stem}.json")
    try:
        return bool(json.loads(sidecar.read_text(encoding="utf-8"))["SkullStripped"])
    except (OSError, ValueError, KeyError, TypeError):
        return BidsName.of(image).entities.get("desc") == "brain"


def _of_transform(what: str, ends: tuple[Path, Path], uri: Uris) -> dict[str, Any]:
    moving, fixed = map(uri, ends)
    return {
        "Description": f"{what}; maps points of the image that this moves to onto the image that "
        "it moves (ITK convention, LPS mm)",
        "Sources": [moving, fixed],
        "MovingImage": moving,
        "FixedImage": fixed,
    }


def _dataset(links: Mapping[str, str]) -> dict[str, Any]:
    from .. import __version__

    return {
        "Name": "Registrations by ParaMorph",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "paramorph-rt", "Version": __version__}],
        LINKS: dict(links),
    }

"""The JSON files beside BIDS derivatives, which name their sources by URIs.

Source: BIDS 1.11, common derived data types.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from ..system.files import json_of
from .bids_entities import BidsName, label
from .outputs import LINKS

BIDS_VERSION = "1.11.1"
DATASET = "dataset_description.json"
RAW = "raw"  # what the dataset of the moving image is called in BIDS URIs
# Images of which BIDS wants to know whether the skull is in them.
ANATOMICAL = {
    "T1w",
    "T2w",
    "PDw",
    "T2starw",
    "FLAIR",
    "inplaneT1",
    "inplaneT2",
    "PDT2",
    "angio",
    "T2star",
    "FLASH",
    "PD",
    "T1map",
    "T2map",
    "T1rho",
    "UNIT1",
}


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
        links = json_of(description)[LINKS]
        return {str(name): str(target) for name, target in links.items()}
    except (KeyError, TypeError, AttributeError):
        return {}  # none there, or one of somebody else


def _link(root: Path, home: Path) -> str:
    try:
        return Path(os.path.relpath(root, home)).as_posix()
    except ValueError:  # on another drive of Windows
        return root.as_uri()


def of_image(
    source: Path, fixed: Path, transform: str, uri: Uris, placed: Mapping[str, str]
) -> dict[str, Any]:
    """The sidecar of an image that was warped by a transform to where `placed` says."""
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
        return bool(json_of(sidecar)["SkullStripped"])
    except (KeyError, TypeError):
        return BidsName.of(image).entities.get("desc") == "brain"


def of_transform(what: str, moving_image: Path, fixed_image: Path, uri: Uris) -> dict[str, Any]:
    """The sidecar of a transform that moves one image onto the other."""
    moving, fixed = uri(moving_image), uri(fixed_image)
    return {
        "Description": f"{what}; maps points of the image that this moves to onto the image that "
        "it moves (ITK convention, LPS mm)",
        "Sources": [moving, fixed],
        "MovingImage": moving,
        "FixedImage": fixed,
    }


def description(links: Mapping[str, str]) -> dict[str, Any]:
    """The description of the dataset of results."""
    from .. import __version__

    return {
        "Name": "Registrations by ParaMorph",
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "paramorph-rt", "Version": __version__}],
        LINKS: dict(links),
    }

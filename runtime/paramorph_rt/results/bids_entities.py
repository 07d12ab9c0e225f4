"""A file name of BIDS, taken apart into its entities and put together again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..images.volume import nifti_name

# Entities that say where an image lies, and those that stand after all others.
SPATIAL = ("tpl", "cohort", "space", "res", "den", "from", "to", "mode")
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
        own = {key: value for key, value in self.entities.items() if key not in (*SPATIAL, "desc")}
        more = [key + value for key, value in own.items() if beside.get(key) != value]
        return label("".join((*more, self.suffix)))


def label(text: str) -> str:
    """What BIDS allows as a label: letters and digits."""
    return re.sub(r"[^0-9A-Za-z]", "", text) or "unnamed"


def joined(entities: Mapping[str, str]) -> str:
    """The entities in the order of BIDS."""
    first = [key for key in entities if key not in LAST]
    last = [key for key in LAST if key in entities]
    return "_".join(f"{key}-{entities[key]}" for key in (*first, *last))

"""The pairs of a BIDS dataset: images of its participants, each to one template."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import CohortError
from ..results.bids_entities import BidsName
from .images import images_with_labels, is_dataset
from .pairs import pairs_to_template
from .work import Outcome, location_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..request import Options
    from .images import LabelledImage
    from .pairs import Pair

log = logging.getLogger(__name__)

MOST_LISTED = 10


@dataclass(frozen=True)
class Selection:
    """Some images of a BIDS dataset.

    Attributes:
        root: Folder of the dataset, above the participants.
        suffix: Of the images, such as "T1w".
        participants: Labels, with or without ``sub-``; empty is all.
        sessions: Labels, with or without ``ses-``; empty is all.
        label_folders: Derivatives with label maps of the images.
    """

    root: Path
    suffix: str
    participants: Sequence[str] = ()
    sessions: Sequence[str] = ()
    label_folders: Sequence[Path] = ()


def pairs_of_dataset(
    selection: Selection, template: Path, template_labels: Path | None, out_dir: Path
) -> list[Pair]:
    """Each selected image to one template.

    Args:
        selection: Moving images.
        template: Fixed image.
        template_labels: Label map of the template.
        out_dir: Of the results, in which no images are looked for.

    Raises:
        CohortError: No dataset, no such participant or session, or nothing to register.
    """
    root, suffix = selection.root, selection.suffix
    if not root.is_dir() or not is_dataset(root):
        raise CohortError(
            f"{root}: expected a BIDS dataset with a folder sub-LABEL for each participant, got "
            f"{'none in it' if root.is_dir() else 'no such folder'}; pass its root."
        )
    present = sorted(path.name.removeprefix("sub-") for path in root.glob("sub-*/"))
    participants = _wanted(selection.participants, "sub-", present, "participant")
    images = [
        image
        for image in images_with_labels([root], out_dir, selection.label_folders)
        if BidsName.of(image.image).suffix == suffix and _label(image, "sub") in participants
    ]
    if selection.sessions:
        present = sorted({session for image in images if (session := _label(image, "ses"))})
        sessions = _wanted(selection.sessions, "ses-", present, "session")
        images = [image for image in images if _label(image, "ses") in sessions]
    for participant in sorted(participants - {_label(image, "sub") for image in images}):
        log.warning("sub-%s: no image %s in anat", participant, suffix)
    if not images:
        raise CohortError(
            f"{root}: expected images sub-…_{suffix} in anat of the participants, got none; "
            "pass another --suffix."
        )
    return pairs_to_template(template, images, template_labels)


def finished(pairs: Sequence[Pair], options: Options, out_dir: Path) -> dict[str, Outcome]:
    """What earlier runs have left of the pairs, by name."""
    outcomes = {}
    for pair in pairs:
        location = location_of(pair, options, out_dir)
        if (location.folder / location.names.record).is_file():
            outcomes[pair.name] = Outcome(pair.name, "kept")
    return outcomes


def _label(image: LabelledImage, entity: str) -> str:
    return BidsName.of(image.image).entities.get(entity, "")


def _wanted(given: Sequence[str], prefix: str, present: Sequence[str], what: str) -> set[str]:
    labels = [label.removeprefix(prefix) for label in given]
    if unknown := [label for label in labels if label not in present]:
        listed = ", ".join(present[:MOST_LISTED]) + (", …" if len(present) > MOST_LISTED else "")
        raise CohortError(
            f"{what} {unknown[0]}: expected one that the dataset has, got none such among "
            f"{listed or 'none'}; check --{what}-label."
        )
    return set(labels or present)

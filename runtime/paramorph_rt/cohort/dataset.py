"""The pairs of a BIDS dataset: images of its participants, each to one template."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import CohortError
from ..results.bids_entities import BidsName
from .images import images_with_labels, is_dataset
from .pairs import pairs_to_template
from .work import Outcome, place_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ..request import Options
    from .images import Found
    from .pairs import Pair

log = logging.getLogger(__name__)

MOST_LISTED = 10


def pairs_of_dataset(
    dataset: Path,
    template: Path,
    suffix: str,
    *,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    template_labels: Path | None = None,
    label_folders: Sequence[Path] = (),
    out_dir: Path | None = None,
) -> list[Pair]:
    """Each anatomical image of a dataset to one template.

    Args:
        dataset: Root, above the participants.
        template: Fixed image.
        suffix: Of the images, such as "T1w".
        participants: Labels, with or without ``sub-``; empty is all.
        sessions: Labels, with or without ``ses-``; empty is all.
        template_labels: Label map of the template.
        label_folders: Derivatives with label maps of the images.
        out_dir: Of the results, in which no images are looked for.

    Raises:
        CohortError: No dataset, no such participant or session, or nothing to register.
    """
    if not dataset.is_dir() or not is_dataset(dataset):
        raise CohortError(
            f"{dataset}: expected a BIDS dataset with a folder sub-LABEL for each participant, got "
            f"{'none in it' if dataset.is_dir() else 'no such folder'}; pass its root."
        )
    there = sorted(path.name.removeprefix("sub-") for path in dataset.glob("sub-*/"))
    wanted = _wanted(participants, "sub-", there, "participant")
    images = [
        image
        for image in images_with_labels([dataset], out_dir, label_folders)
        if BidsName.of(image.image).suffix == suffix and _label(image, "sub") in wanted
    ]
    if sessions:
        found = sorted({session for image in images if (session := _label(image, "ses"))})
        chosen = _wanted(sessions, "ses-", found, "session")
        images = [image for image in images if _label(image, "ses") in chosen]
    for participant in sorted(wanted - {_label(image, "sub") for image in images}):
        log.warning("sub-%s: no image %s in anat", participant, suffix)
    if not images:
        raise CohortError(
            f"{dataset}: expected images sub-…_{suffix} in anat of the participants, got none; "
            "pass another --suffix."
        )
    return pairs_to_template(template, images, template_labels)


def finished(pairs: Sequence[Pair], options: Options, out_dir: Path) -> dict[str, Outcome]:
    """What earlier runs have left of the pairs, by name."""
    outcomes = {}
    for pair in pairs:
        place = place_of(pair, options, out_dir)
        if (place.folder / place.names.record).is_file():
            outcomes[pair.name] = Outcome(pair.name, "kept")
    return outcomes


def _label(image: Found, entity: str) -> str:
    return BidsName.of(image.image).entities.get(entity, "")


def _wanted(asked: Sequence[str], prefix: str, there: Sequence[str], what: str) -> set[str]:
    labels = [label.removeprefix(prefix) for label in asked]
    if unknown := [label for label in labels if label not in there]:
        listed = ", ".join(there[:MOST_LISTED]) + (", …" if len(there) > MOST_LISTED else "")
        raise CohortError(
            f"{what} {unknown[0]}: expected one that the dataset has, got none such among "
            f"{listed or 'none'}; check --{what}-label."
        )
    return set(labels or there)

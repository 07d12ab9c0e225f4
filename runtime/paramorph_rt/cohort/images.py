"""Which files of folders are images, and which label map belongs to which.

Trees are walked, those of BIDS datasets through their subjects and sessions to `anat`. What our own
results, BIDS and ANTs call label maps, masks and fields is recognised by its name.
"""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import CohortError
from ..images.analyze import SUFFIXES as ANALYZE
from ..images.itk_files import SUFFIXES as ITK
from ..images.nifti import SUFFIXES as NIFTI
from ..results import outputs
from ..results.bids_entities import BidsName

log = logging.getLogger(__name__)

ENDINGS = (*NIFTI, *ITK, *ANALYZE)
VOXELS = (".img", ".img.gz")  # an image is listed once, by its header
# What a name ends in, after an underscore or as a whole.
LABELS = ("labels", "dseg")
NO_IMAGES = (
    "mask",
    "probseg",
    "defacemask",
    "roi",
    # Transforms, and what comes with them, of this toolkit, BIDS derivatives and ANTs.
    "displacement",
    "xfm",
    "warp",
    "1Warp",
    "1InverseWarp",
    "0Warp",
    "0InverseWarp",
)
RESULTS = tuple(
    name.removesuffix(".nii.gz") for name in (outputs.DISPLACEMENT, outputs.INVERSE, outputs.SERIES)
)
# Of a label map's name in BIDS, what says which labels it holds and not of which image.
OF_LABELS = ("desc", "label", "seg", "hemi", "atlas")
# Folders of a subject or session in BIDS whose images are no volumes to be registered one by one.
OTHER_DATA = {"func", "dwi", "fmap", "perf", "pet", "meg", "eeg", "ieeg", "beh", "micr", "nirs"}
OTHER_DATA |= {"motion", "mrs", "figures", "log"}


@dataclass(frozen=True)
class LabelledImage:
    """An image, and its label map if there is one.

    Attributes:
        image: Path of the image.
        labels: Path of its label map.
        relative: The image's path below the folder that was given.
    """

    image: Path
    labels: Path | None
    relative: Path


def images_with_labels(
    paths: Iterable[Path], but: Path | None = None, label_folders: Sequence[Path] = ()
) -> list[LabelledImage]:
    """Images, each with its label map if that is there too.

    `NAME_labels.nii.gz` is the label map of `NAME.nii.gz` or `NAME_anything.nii.gz` beside it. With
    BIDS names, `sub-01_desc-aseg_dseg.nii.gz` is that of images that have its entities besides
    desc, label and seg. Masks, probability maps and fields are no images.

    Args:
        paths: Files, or folders with NIfTI, NRRD, MetaImage and Analyze files below them.
        but: A folder that is not looked into, such as that of the results.
        label_folders: Further folders with label maps in BIDS names, such as derivatives.

    Raises:
        CohortError: Nothing there, a label map without its image, or an image with several.
    """
    relative = {file: below for path in paths for file, below in _files(path, but)}
    images = [path for path in relative if _kind(path) == "image"]
    if not images:
        raise CohortError(
            f"{next(iter(relative), 'images')}: expected at least one image, got only label maps, "
            "masks or fields by their names; pass the images."
        )
    labels = [path for path in relative if _kind(path) == "labels"]
    beside, elsewhere = defaultdict(list), defaultdict(list)
    for path in labels:
        beside[path.parent].append(path)
    for folder in label_folders:
        for path, _ in _files(folder, but):
            if _kind(path) == "labels":
                elsewhere[BidsName.of(path).entities.get("sub")].append(path)
    owned = {
        image: _labels_of(
            image, beside[image.parent], elsewhere[BidsName.of(image).entities.get("sub")]
        )
        for image in images
    }
    _check_orphans([path for path in labels if path not in set(owned.values())])
    return [LabelledImage(image, labels, relative[image]) for image, labels in owned.items()]


def _check_orphans(orphans: Sequence[Path]) -> None:
    """Refuse a label map without its image; a BIDS dataset may have some."""
    for path in orphans:
        if not _is_bids(path):
            raise CohortError(
                f"{path}: expected its image beside it, found none; add NAME.nii.gz for every "
                "NAME_labels.nii.gz."
            )
    if orphans:
        more = f" (and {len(orphans) - 1} more)" if len(orphans) > 1 else ""
        log.warning("%s: a label map of none of the images%s", orphans[0], more)


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds subjects as BIDS has them."""
    return any(path.is_dir() for path in folder.glob("sub-*"))


def stem(path: Path) -> str:
    """A file's name without its ending, whatever is left of it."""
    name = path.name.removesuffix(".gz")
    return next((name.removesuffix(end) for end in ENDINGS if name.endswith(end)), name)


def _files(path: Path, but: Path | None) -> Iterator[tuple[Path, Path]]:
    """Each file of an image type, and its path below what was given."""
    if not path.exists():
        raise CohortError(f"{path}: expected an image or a folder, found none; check the path.")
    if not path.is_dir():
        yield path, Path(path.name)
        return
    dataset, is_empty = is_dataset(path), True
    for home, folders, names in os.walk(path, followlinks=True):
        folder = Path(home)
        above = {os.path.realpath(p) for p in (folder, *folder.parents)}
        folders[:] = sorted(f for f in folders if _is_walked(folder / f, but, above))
        if dataset and folder == path:
            folders[:] = [f for f in folders if f.startswith("sub-")]
            continue  # what lies beside the subjects belongs to none
        for name in sorted(names):
            if name.endswith(ENDINGS) and not name.endswith(VOXELS):
                is_empty = False
                yield folder / name, (folder / name).relative_to(path)
    if is_empty:
        raise CohortError(
            f"{path}: expected a folder with images (NIfTI, NRRD, MetaImage, Analyze), got none in "
            f"{'anat below its subjects' if dataset else 'it'}; pass the folder that holds them, "
            "or the images."
        )


def _is_walked(folder: Path, but: Path | None, above: set[str]) -> bool:
    if folder.is_symlink() and os.path.realpath(folder) in above:  # a circle
        return False
    if folder.name.startswith(".") or (but is not None and folder.resolve() == but.resolve()):
        return False
    if folder.name in (outputs.ALSO, outputs.FIGURES):
        return False
    return not (folder.parent.name.startswith(("sub-", "ses-")) and folder.name in OTHER_DATA)


def _kind(path: Path) -> str:
    name = stem(path)
    last = name.rpartition("_")[2]
    if last in LABELS:
        return "labels"
    return "other" if last in NO_IMAGES or name in RESULTS else "image"


def _is_bids(path: Path) -> bool:
    return bool(BidsName.of(path).suffix)


def _labels_of(image: Path, beside: Sequence[Path], elsewhere: Sequence[Path]) -> Path | None:
    near = [path for path in beside if path.parent == image.parent]
    fitting = [path for path in near if _is_bids(path) and _fits(path, image)]
    fitting = fitting or [path for path in elsewhere if _is_bids(path) and _fits(path, image)]
    if len(fitting) > 1:
        several = " and ".join(path.name for path in fitting[:3])
        raise CohortError(
            f"{image}: expected one label map, got {several}; name the one that you mean in a "
            "table of pairs."
        )
    if fitting:
        return fitting[0]
    by_name = [path for path in near if not _is_bids(path) and _begins(path, image)]
    return max(by_name, key=lambda path: len(path.name), default=None)


def _begins(labels: Path, image: Path) -> bool:
    """Whether the label map's name, without its last word, begins the image's."""
    owner = stem(labels).rpartition("_")[0]
    return stem(image) == owner or stem(image).startswith(f"{owner}_")


def _fits(labels: Path, image: Path) -> bool:
    """Whether a label map in BIDS names lies on the image, as far as their names say."""
    theirs, own = BidsName.of(labels), BidsName.of(image)
    entities = {k: v for k, v in theirs.entities.items() if k not in OF_LABELS}
    if entities.get("space") == own.suffix and "space" not in own.entities:
        del entities["space"]  # space-T1w is where the T1w image is
    if "space" in own.entities.keys() - entities.keys():
        return False
    return bool(own.suffix) and entities.items() <= own.entities.items()

"""The data sets of the paper in the layouts that they are published in."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from paramorph.data.subjects import DataError, Split, SubjectFiles, is_volume, stem

if TYPE_CHECKING:
    from collections.abc import Iterator

#: LPBA40's regions without the cerebellum (181) and the brainstem (182), which the usual
#: evaluation on 54 labels leaves out; odd is left, even is right.
#: Source: Shattuck et al. 2008 (LPBA40); the same list in TransMatch's Train.py.
LPBA40_LABELS = (
    *range(21, 35),  # frontal lobe
    *range(41, 51),  # parietal lobe
    *range(61, 69),  # occipital lobe
    *range(81, 93),  # temporal lobe
    *range(101, 103),  # insula
    *range(121, 123),  # cingulate gyrus
    *range(161, 167),  # caudate, putamen, hippocampus
)
_LPBA40_IMAGE = re.compile(r"S(\d\d)\.delineation\.skullstripped")
_LPBA40_LABELS = re.compile(r"S(\d\d)\.delineation\.structure\.label")
_LPBA40_PAIR = re.compile(r"l(\d+)_to_l\1")


def prostate158(root: Path) -> Split:
    """Prostate158: T2 with the zones of the first reader, 1 central gland and 2 peripheral zone.

    `CASE/t2.nii.gz` with `CASE/t2_anatomy_reader1.nii.gz`, anywhere beneath `root`, so the
    archives prostate158_train (cases 020 to 158) and prostate158_test (001 to 019) may lie in it
    as they unpack. A fifth is for validation, first of all the test archive.

    Source: Adams et al. 2022; zenodo.org/records/6481141 and 6592345.
    """
    return _split(root, _case_folders(root, "t2", "t2_anatomy_reader1"), 1 / 5)


def hph_pm(root: Path) -> Split:
    """Prostate T2 with a mask of the gland, in this toolkit's own layout: no public one exists.

    `CASE/t2.nii.gz` with `CASE/mask.nii.gz`; ten of 110 cases are for validation.
    """
    return _split(root, _case_folders(root, "t2", "mask"), 10 / 110)


def lpba40(root: Path) -> Split:
    """LPBA40: skull-stripped T1 with 54 regions; S01 to S10 are for validation.

    Anywhere beneath `root`, either LONI's names (in a folder each, or as spread with
    TransMatch in `train`, `test` and `label`, where `fixed` stands for S01)::

        S01.delineation.skullstripped.nii.gz
        S01.delineation.structure.label.nii.gz

    or Klein's, of which only each subject in its own space is used and called S01 and so on::

        LPBA40_rigidly_registered_pairs/l1_to_l1.nii
        LPBA40_rigidly_registered_label_pairs/l1_to_l1.nii

    or either as Analyze under the same names (`.hdr` with `.img`), as both are published.

    Source: Shattuck et al. 2008; Klein et al. 2009; github.com/tzayuan/TransMatch_TMI.
    """
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    fixed = None
    for path in filter(is_volume, _files(root)):
        name = stem(path)
        if match := _LPBA40_IMAGE.fullmatch(name):
            _put(images, match[1], path)
        elif match := _LPBA40_LABELS.fullmatch(name):
            _put(labels, match[1], path)
        elif match := _LPBA40_PAIR.fullmatch(name):
            _put(labels if "label" in path.parent.name else images, f"{match[1]:0>2}", path)
        elif name == "fixed":
            fixed = path
    if fixed is not None:
        images.setdefault("01", fixed)
    cases = _matched(root, images, labels, "S01.delineation.skullstripped.nii.gz")
    return _split(
        root,
        [
            SubjectFiles(f"S{c.name}", c.image, c.labels, LPBA40_LABELS, odd_is_left=True)
            for c in cases
        ],
        10 / 40,
    )


def _case_folders(root: Path, image: str, labels: str) -> list[SubjectFiles]:
    """Folders beneath `root` that hold a volume and its labels under these names."""
    images: dict[str, Path] = {}
    label_maps: dict[str, Path] = {}
    for path in filter(is_volume, _files(root)):
        if stem(path) == image:
            _put(images, path.parent.name, path)
        elif stem(path) == labels:
            _put(label_maps, path.parent.name, path)
    return _matched(root, images, label_maps, f"CASE/{image}.nii.gz with {labels}.nii.gz")


def _matched(
    root: Path, images: dict[str, Path], labels: dict[str, Path], wanted: str
) -> list[SubjectFiles]:
    if not images:
        raise DataError(f"{root}: expected {wanted} beneath it, found none; check the path.")
    for name in sorted(images.keys() ^ labels.keys()):
        other = images.get(name) or labels[name]
        raise DataError(
            f"{other}: expected {'labels' if name in images else 'an image'} of the same case, "
            'found none; complete the data, or list the cases in a CSV file (layout = "csv").'
        )
    return [SubjectFiles(name, images[name], labels[name]) for name in sorted(images)]


def _split(root: Path, cases: list[SubjectFiles], validation: float) -> Split:
    """The first cases, a share `validation` of all and at least two, are kept from training."""
    if len(cases) < 4:
        raise DataError(
            f"{root}: expected at least two cases to train on and two to validate on, found "
            f"{len(cases)} in all; check the path."
        )
    count = max(2, round(len(cases) * validation))
    return Split(training=cases[count:], validation=cases[:count])


def _files(root: Path) -> Iterator[Path]:
    """All files beneath a folder in a fixed order, through symbolic links too."""
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders.sort()
        yield from (Path(folder, name) for name in sorted(names))


def _put(found: dict[str, Path], case: str, path: Path) -> None:
    if case in found:
        raise DataError(
            f"{path}: expected one file for the case {case}, found {found[case]} as well; leave "
            "one of them beneath the folder."
        )
    found[case] = path

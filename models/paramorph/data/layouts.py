"""Where training data come from: a layout on disk → subjects to train and to validate on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from paramorph.data.folder import find_subjects
from paramorph.data.published import hph_pm, lpba40, prostate158
from paramorph.data.subjects import DataError, Split, SubjectFiles
from paramorph.data.table import read_csv
from paramorph.options import option
from paramorph_rt.errors import VolumeError
from paramorph_rt.images.analyze import check_orientation

PUBLISHED = {"prostate158": prostate158, "lpba40": lpba40, "hph-pm": hph_pm}
LAYOUTS = ("folder", "csv", *PUBLISHED)


@dataclass(frozen=True)
class DataConfig:
    """Which subjects a training uses, and how they are prepared."""

    layout: str = option("folder", "how the data lie on disk, see models/README.md", LAYOUTS)
    root: str = option("", "folder of the data, or the CSV file")
    validation_root: str = option("", "folder of validation data; layout folder only")
    reference: str = option("", "subject that all are aligned to; empty: the first to train on")
    affine: bool = option(True, "align to it affinely; false: all lie in one world as they are")
    analyze_orientation: str = option(
        "", "where the voxels' axes of Analyze images (.hdr, .img) point, such as LAS"
    )
    workers: int = option(0, "processes that prepare subjects; 0: one per core")
    cache: str = option("", "folder of prepared subjects; empty: cache in the run folder")


def load_split(config: DataConfig) -> Split:
    """Find the subjects of a layout; the same data give the same split.

    Raises:
        DataError: Data that do not lie as the layout says, by the first file that does not.
    """
    if config.layout not in LAYOUTS:
        raise DataError(f"[data] layout: expected {' or '.join(LAYOUTS)}, got {config.layout}.")
    if not config.root:
        raise DataError("[data] root: expected where the data lie, got nothing; set it.")
    found = _found(config)
    training, validation = (
        _oriented(part, config.analyze_orientation) for part in (found.training, found.validation)
    )
    return Split(training, validation, config.reference)


def _oriented(subjects: list[SubjectFiles], orientation: str) -> list[SubjectFiles]:
    """The subjects, with the orientation that headers of Analyze cannot state."""
    if not orientation:
        return subjects
    try:
        check_orientation(orientation)
    except VolumeError as error:
        raise DataError(f"[data] analyze_{error}") from error
    return [replace(files, orientation=orientation) for files in subjects]


def _found(config: DataConfig) -> Split:
    root = Path(config.root).expanduser()
    if config.layout == "folder":
        folder = config.validation_root
        return Split(
            find_subjects(root), find_subjects(Path(folder).expanduser()) if folder else []
        )
    if config.validation_root:
        raise DataError(
            f"[data] validation_root: expected nothing with the layout {config.layout}, which "
            f"splits the data itself, got {config.validation_root}; leave it out."
        )
    if config.layout == "csv":
        return read_csv(root)
    if not root.is_dir():
        raise DataError(f"[data] root: expected a folder, got {root}; check the path.")
    return PUBLISHED[config.layout](root)

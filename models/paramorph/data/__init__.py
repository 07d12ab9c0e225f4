"""Training data: finding subjects on disk, and bringing them onto one network grid."""

from __future__ import annotations

from paramorph.data.folder import each_to_next, find_subjects, labelled_pairs
from paramorph.data.layouts import DataConfig, load_split
from paramorph.data.preparation import prepare_subjects
from paramorph.data.subjects import DataError, Split, Subject, SubjectFiles

__all__ = [
    "DataConfig",
    "DataError",
    "Split",
    "Subject",
    "SubjectFiles",
    "each_to_next",
    "find_subjects",
    "labelled_pairs",
    "load_split",
    "prepare_subjects",
]

"""Training data: finding subjects on disk, and bringing them onto one network grid."""

from __future__ import annotations

from paramorph.data.folder import find_subjects
from paramorph.data.layouts import DataConfig, load_split
from paramorph.data.preparation import prepare_subjects
from paramorph.data.subjects import DataError, Split, Subject, SubjectFiles

__all__ = [
    "DataConfig",
    "DataError",
    "Split",
    "Subject",
    "SubjectFiles",
    "find_subjects",
    "load_split",
    "prepare_subjects",
]

"""The folder of results: all of it appears, or none."""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

WARPED = "warped.nii.gz"
DISPLACEMENT = "displacement.nii.gz"
AFFINE = "affine.tfm"
WARPED_LABELS = "warped_labels.nii.gz"
INVERSE = "inverse_displacement.nii.gz"
ALSO = "also_warped"  # a folder: whatever was warped along, under its own name
METRICS = "metrics.json"
OUTPUTS = (WARPED, DISPLACEMENT, AFFINE, WARPED_LABELS, INVERSE, ALSO, METRICS)


def check_outputs(folder: Path, force: bool) -> None:
    """Refuse a folder that cannot take the results, before any work is done for them.

    Raises:
        OutputError: It is a file, cannot be written, or holds results and `force` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: expected a folder, got a file; choose another --out-dir.")
    existing = [name for name in OUTPUTS if (folder / name).exists()]
    if existing and not force:
        raise OutputError(
            f"{folder}: expected no earlier results, got {', '.join(existing)}; pass --force to "
            "replace them, or choose another --out-dir."
        )
    ancestor = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (ancestor.is_dir() and os.access(ancestor, os.W_OK)):
        raise OutputError(
            f"{folder}: expected a folder to write into, got no permission for {ancestor}; "
            "choose another --out-dir."
        )


def check_file(path: Path, force: bool, suffixes: tuple[str, ...] = ("",)) -> None:
    """Refuse a file that cannot take a result, before any work is done for it.

    Args:
        path: Result; its folder must exist.
        force: Replace an existing file.
        suffixes: What the name may end in.

    Raises:
        OutputError: It exists and `force` is not set, cannot be written, or has another suffix.
    """
    if not path.name.endswith(suffixes):
        raise OutputError(
            f"{path}: expected a name in {' or '.join(suffixes)}, got another; "
            "choose another --out."
        )
    if path.is_dir():
        raise OutputError(f"{path}: expected a file, got a folder; choose another --out.")
    if path.exists() and not force:
        raise OutputError(
            f"{path}: expected no earlier result, got one; pass --force to replace it, or choose "
            "another --out."
        )
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise OutputError(
            f"{path}: expected a folder to write into, got none at {path.parent}; make it first, "
            "or choose another --out."
        )


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A hidden file to write, which becomes `path` when the block ends well.

    Raises:
        OutputError: Writing fails; nothing of the block's is left then.
    """
    # The name stays at the end, because writers choose the form by its suffix.
    staging = path.with_name(f".paramorph-{uuid.uuid4().hex}-{path.name}")
    try:
        yield staging
        staging.replace(path)
    except OSError as err:
        raise OutputError(
            f"{path}: expected to write the result, got {err.strerror or err}; free the disk or "
            "choose another --out."
        ) from err
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def staged_outputs(folder: Path, force: bool) -> Iterator[Path]:
    """A hidden folder to write results into, which move to `folder` when the block ends well.

    A new `folder` appears by one rename. In an existing one our files are replaced one by one,
    those of an earlier run that this one did not write are removed, and all others stay.

    Raises:
        OutputError: As `check_outputs`, or writing fails; nothing of the block's is left then.
    """
    check_outputs(folder, force)
    # Inside an existing folder, because its parent may be another file system.
    home = folder if folder.exists() else folder.absolute().parent
    staging = home / f".paramorph-{uuid.uuid4().hex}"
    try:
        staging.mkdir(parents=True)
        yield staging
        if not folder.exists():
            staging.rename(folder)
            return
        for name in OUTPUTS:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            if (staging / name).exists():
                (staging / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    except OSError as err:
        raise OutputError(
            f"{folder}: expected to write the results, got {err.strerror or err}; free the disk "
            "or choose another --out-dir."
        ) from err
    finally:
        shutil.rmtree(staging, ignore_errors=True)

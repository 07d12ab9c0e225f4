"""The folder of results: all of it appears, or none."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..images.volume import nifti_name
from ..system.files import json_of
from ..system.interrupts import held
from ..system.staging import flush, locked, replace_together, staged_file, staging_folder, sweep
from .json_files import write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

WARPED = "warped.nii.gz"
DISPLACEMENT = "displacement.nii.gz"
AFFINE = "affine.tfm"
COMPOSITE = "composite.h5"
WARPED_LABELS = "warped_labels.nii.gz"
INVERSE = "inverse_displacement.nii.gz"
BRAIN_MASKS = {"moving": "moving_brain_mask.nii.gz", "fixed": "fixed_brain_mask.nii.gz"}
SERIES = "warped_series.nii.gz"
ALSO = "also_warped"  # a folder: whatever was warped along, under its own name
METRICS = "metrics.json"
REPORT = "report.html"
FIGURES = "figures"  # a folder of PNG files
FIGURE_FILES = tuple(
    f"{name}.png"
    for name in ("registration", "checkerboard", "difference", "grid", "jacobian", "contours")
)
LINKS = "DatasetLinks"  # within a description that all runs share
RECORD = "record.json"  # of a cohort's pair; last, so that it vouches for the others


@dataclass(frozen=True)
class Names:
    """What the results are called: paths relative to the folder of results.

    Attributes:
        also: Folder of what was warped along, under its own name unless `also_names` has it.
        sidecars: Further JSON files by name; each is written if the result that it describes is.
        shared: Files by name, text or the content of JSON, that all runs into the folder have in
            common, such as a dataset's description; one that is there stays, but for the links to
            other datasets that it lacks.
    """

    warped: str = WARPED
    displacement: str = DISPLACEMENT
    affine: str = AFFINE
    composite: str = COMPOSITE
    warped_labels: str = WARPED_LABELS
    inverse: str = INVERSE
    brain_masks: Mapping[str, str] = field(default_factory=BRAIN_MASKS.copy)
    series: str = SERIES
    also: str = ALSO
    also_names: Mapping[str, str] = field(default_factory=dict)
    metrics: str = METRICS
    report: str = REPORT
    figures: str = FIGURES
    record: str = RECORD
    sidecars: Mapping[str, Sidecar] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> tuple[str, ...]:
        """All that belongs to one registration; the record comes last, so that it vouches."""
        results = (
            self.warped,
            self.displacement,
            self.affine,
            self.composite,
            self.warped_labels,
            self.inverse,
            *self.brain_masks.values(),
            self.series,
            *(self.also_names.values() or [self.also]),
            self.metrics,
            self.report,
            self.figures,
        )
        return tuple(dict.fromkeys((*results, *self.sidecars, self.record)))

    @property
    def pictures(self) -> dict[str, str]:
        """What is drawn under a plain name, and what it is called then."""
        return {REPORT: self.report, FIGURES: self.figures}

    def also_warped(self, name: str) -> str:
        """Where a file of this name goes that was warped along."""
        return self.also_names.get(name, f"{self.also}/{name}")


@dataclass(frozen=True)
class Sidecar:
    """A JSON file beside a result.

    Attributes:
        of: The result's name.
        content: What it says.
    """

    of: str
    content: Mapping[str, Any]


PLAIN = Names()


def make_folders(folder: Path, names: Names, also: Iterable[str]) -> None:
    """Where the results go, and what was warped along."""
    for name in (*(n for n in names.own if n != names.also), *map(names.also_warped, also)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)


def finish_names(folder: Path, names: Names) -> None:
    """Rename what was written under its plain name; describe those results that are there."""
    for plain, name in names.pictures.items():
        if (folder / plain).exists():
            (folder / plain).rename(folder / name)
    for name, sidecar in names.sidecars.items():
        if (folder / sidecar.of).exists():
            write_json(folder / name, sidecar.content)
    write_shared(folder, names)


def write_shared(folder: Path, names: Names) -> None:
    """Write what all runs into the folder have in common."""
    with locked(folder):
        for name, content in names.shared.items():
            path = folder / name
            if path.exists():
                _add_links(path, content)
                continue
            with staged_file(path) as staging:  # another process may read it at this moment
                if isinstance(content, str):
                    staging.write_text(content, encoding="utf-8")
                else:
                    write_json(staging, content)


def _add_links(path: Path, content: Any) -> None:
    """Give a description that is there already the links to other datasets that it lacks."""
    with suppress(
        OSError, ValueError, TypeError, AttributeError, KeyError
    ):  # not JSON, or not such
        there, wanted = json_of(path), content[LINKS]
        if there["DatasetType"] != content["DatasetType"]:  # a raw one is nothing of ours
            return
        links = {**wanted, **there.get(LINKS, {})}
        if links != there.get(LINKS):
            with staged_file(path) as staging:
                write_json(staging, {**there, LINKS: links})


def check_outputs(
    folder: Path, force: bool, names: Names = PLAIN, inputs: Iterable[Path] = ()
) -> None:
    """Refuse a folder that cannot take the results, before any work is done for them.

    Args:
        folder: Of the results.
        force: Replace those of an earlier run.
        names: Of the results.
        inputs: Files that the results are made of.

    Raises:
        OutputError: It is a file, cannot be written, holds results and `force` is not set, or one
            of the results would replace an input.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise OutputError(f"{folder}: expected a folder, got a file; choose another --out-dir.")
    if folder.is_dir():
        sweep(folder)
    for name in (names.also, names.figures):
        if (folder / name).is_symlink() or (folder / name).is_file():
            raise OutputError(
                f"{folder / name}: expected a folder, got a link or a file; move it away, or "
                "choose another --out-dir."
            )
    check_apart([folder / name for name in (*names.own, *_earlier(folder, names))], inputs)
    existing = [name for name in names.own if (folder / name).exists()]
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


def check_apart(results: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuse results in the place of what they are made of.

    Raises:
        OutputError: One of them is an input, by whatever path.
    """
    places = {_place(path) for path in results}
    for path in inputs:
        if places & {_place(path), os.path.realpath(path)}:
            raise OutputError(
                f"{path}: expected results beside what they are made of, got one in its place; "
                "choose another name for them, or move the input away."
            )


def _place(path: Path) -> str:
    """Where a file is replaced: a link itself, not what it points to."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _is_system(path: Path) -> bool:
    """Whether it stands for a stream of the process, such as /dev/stdout, a link to anything."""
    home = os.path.dirname(_place(path))
    return home == "/dev" or home.startswith("/proc/")


def check_file(
    path: Path, force: bool, suffixes: tuple[str, ...] = ("",), inputs: Iterable[Path] = ()
) -> None:
    """Refuse a file that cannot take a result, before any work is done for it.

    Args:
        path: Result; its folder must exist.
        force: Replace an existing file.
        suffixes: What the name may end in.
        inputs: Files that the result is made of.

    Raises:
        OutputError: It exists and `force` is not set, is no regular file, cannot be written, has
            another suffix, or is one of the inputs.
    """
    if not path.name.endswith(suffixes):
        raise OutputError(
            f"{path}: expected a name in {' or '.join(suffixes)}, got another; "
            "choose another file name."
        )
    if path.is_dir():
        raise OutputError(f"{path}: expected a file, got a folder; choose another file name.")
    if path.exists() and (not path.is_file() or _is_system(path)):
        raise OutputError(
            f"{path}: expected a regular file to replace, got a device or a pipe; choose another "
            "file name, or leave it out for stdout."
        )
    check_apart([path], inputs)
    if path.exists() and not force:
        raise OutputError(
            f"{path}: expected no earlier result, got one; pass --force to replace it, or choose "
            "another file name."
        )
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise OutputError(
            f"{path}: expected a folder to write into, got none at {path.parent}; make it first, "
            "or choose another file name."
        )


@contextmanager
def staged_outputs(folder: Path, force: bool, names: Names = PLAIN) -> Iterator[Path]:
    """A hidden folder to write results into, which move to `folder` when the block ends well.

    A new `folder` appears by one rename. In an existing one our files are replaced together, those
    of an earlier run that this one did not write are removed, and all others stay; a kill in the
    middle leaves it without the files that vouch (metrics and record), until the next run has
    finished it.

    Raises:
        OutputError: As `check_outputs`, or writing fails; nothing of the block's is left then.
    """
    check_outputs(folder, force, names)
    # Inside an existing folder, because its parent may be another file system.
    home = folder if folder.exists() else folder.absolute().parent
    try:
        with staging_folder(home) as staging:
            yield staging
            with held():
                flush(staging)
                if not _became(staging, folder):
                    with locked(folder):
                        check_outputs(folder, force, names)  # another run may have been faster
                        _share(staging, folder, names)
                        stale = list(_earlier(folder, names))
                        replace_together(staging, folder, stale, (names.record, names.metrics))
    except OutputError:
        raise
    except OSError as err:
        raise OutputError(
            f"{folder}: expected to write the results, got {err.strerror or err}; free the disk "
            "or choose another --out-dir."
        ) from err


def _share(staging: Path, folder: Path, names: Names) -> None:
    """What all runs have in common stays where it is there already, but for what it lacks."""
    for name in names.shared:
        if (folder / name).exists():
            (staging / name).unlink(missing_ok=True)
    write_shared(folder, names)


def _became(staging: Path, folder: Path) -> bool:
    """Whether there was no such folder, and the staging is it now."""
    if folder.exists():
        return False
    try:
        staging.rename(folder)
    except OSError as err:
        if err.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another run was faster
            return False
        raise
    return True


def _earlier(folder: Path, names: Names) -> Iterator[str]:
    """Files of an earlier run, and the folders of results, which go if nothing else is in them."""
    folders = {names.also: _warped_along(folder / names.metrics), names.figures: FIGURE_FILES}
    for name in names.own:
        for file in folders.get(name, ()):
            yield f"{name}/{file}"
        if (folder / name).exists():
            yield name


def _warped_along(metrics: Path) -> list[str]:
    """Names in `also_warped`, as the metrics of the run that wrote them tell."""
    try:
        inputs = json_of(metrics)["provenance"]["inputs"]
        return [
            nifti_name(Path(entry["path"]).name)
            for role, entry in inputs.items()
            if role.startswith("also")
        ]
    except (KeyError, TypeError, AttributeError):
        return []

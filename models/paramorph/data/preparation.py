"""Subjects on one network grid: checked, aligned and resampled once, then read from a cache."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from paramorph.data.subjects import DataError, Subject
from paramorph_rt.errors import VolumeError
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.images.checks import check_same_grid
from paramorph_rt.images.volume import files_of, is_analyze, load_labels, load_volume
from paramorph_rt.steps.affine import align_affine
from paramorph_rt.steps.preparation import network_grid_for, prepare_moving
from paramorph_rt.system.staging import staged_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from paramorph.data.subjects import SubjectFiles
    from paramorph_rt.bundle import InputSpec
    from paramorph_rt.images.volume import Volume

# Between the middles of the left and the right labels of a brain; they are some 60 mm apart.
LEAST_APART_MM = 10.0


def prepare_subjects(  # what becomes of what, and where
    subjects: Iterable[SubjectFiles],
    reference: SubjectFiles,
    spec: InputSpec,
    cache: str | Path,
    workers: int = 1,
    report: Callable[[str], None] = print,
    affine: bool = True,
) -> list[Subject]:
    """Subjects on the network grid, by the same steps as the runtime takes with a moving image.

    Affine alignment to `reference`, resampling onto the network grid over the reference's
    foreground, intensities to [0, 1]. Each result is cached in `cache` under a name made from the
    content of its files and the settings, so a second run, or one after a kill, only reads.
    All files are read and checked before the first is prepared.

    Args:
        subjects: In the order of the results.
        reference: Subject that all are aligned to; its own affine is the identity.
        spec: Grid and intensities that the network expects.
        cache: Folder, made if missing; several runs may share it.
        workers: Processes; 0 is one per core, 1 works in this process with all threads of ITK.
        report: Called with a line for every subject that is prepared, as it is done.
        affine: Align; without, subjects must lie upon the reference in the world.

    Raises:
        VolumeError: A file that cannot be trusted, by its path.
        AlignmentError: A subject that cannot be aligned to the reference, by its path.
        DataError: A cache that cannot be used, or a worker that was killed. What was prepared
            before any of these errors is kept.
    """
    subjects, cache = list(subjects), Path(cache)
    paths = [cache / f"{s.name}-{_fingerprint(s, reference, spec, affine)}.npz" for s in subjects]
    missing = {p: s for p, s in zip(paths, subjects, strict=True) if not p.exists()}
    if missing:
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{cache}: expected a folder for the cache, got {error}.") from error
        with _worker_pool(_worker_count(workers, len(missing))) as pool:
            checks = [(files,) for files in dict.fromkeys((reference, *missing.values()))]
            for _ in _each(pool, _check, checks):
                pass
            jobs = [(path, files, reference, spec, affine) for path, files in missing.items()]
            for _, files, *_ in _each(pool, _prepare_into, jobs):
                report(f"prepared {files.name}")
    return [_read_npz(path, s.name) for path, s in zip(paths, subjects, strict=True)]


def _check(files: SubjectFiles) -> None:
    _load(files)


def _prepare_into(
    path: Path, files: SubjectFiles, reference: SubjectFiles, spec: InputSpec, affine: bool
) -> None:
    fixed = _load_image(reference)
    volume, labels = _load(files)
    stays = not affine or files.image.samefile(reference.image)
    to_moving = np.eye(4) if stays else align_affine(volume, fixed).affine
    grid = network_grid_for(fixed, spec)
    aligned = prepare_moving(volume, fixed.name, grid, to_moving, spec.intensity)
    image = aligned.astype(np.float16)  # 11 bits: more than a scanner has
    arrays = {"image": image}
    if labels is not None:
        arrays["labels"] = resample_to_grid(labels, grid, to_moving, "nearest")
    _write_npz(path, arrays)


def _load(files: SubjectFiles) -> tuple[Volume, Volume | None]:
    """A subject's image and labels, checked alone and together."""
    volume = _load_image(files)
    if files.labels is None:
        return volume, None
    how = partial(load_labels, orientation=files.orientation or None)
    labels = _with_full_name(how, files.labels)
    check_same_grid(volume, labels)
    if files.odd_is_left and is_analyze(files.image):
        _check_sides(labels, files.orientation)
    if files.keep_labels:
        data = labels.data * np.isin(labels.data, files.keep_labels)
        if not data.any():
            raise VolumeError(
                f"{labels.name}: expected some of the {len(files.keep_labels)} labels "
                f"{min(files.keep_labels)} to {max(files.keep_labels)}, got none of them; check "
                "that it is the right file."
            )
        labels = replace(labels, data=data)
    return volume, labels


def _check_sides(labels: Volume, orientation: str) -> None:
    """Refuse an orientation by which odd labels lie on the right, or neither left nor right."""
    sides = []
    for remainder in (1, 0):
        index = np.argwhere((labels.data != 0) & (labels.data % 2 == remainder))
        sides.append(labels.grid.world(index.mean(axis=0))[0] if len(index) else 0.0)
    odd, even = sides
    if odd - even > -LEAST_APART_MM:
        raise VolumeError(
            f"{labels.name}: expected odd labels on the left and even ones on the right, got the "
            f"odd ones {odd - even:.0f} mm further right by analyze_orientation {orientation}; set "
            "another, such as one with R for L."
        )


def _load_image(files: SubjectFiles) -> Volume:
    how = partial(load_volume, orientation=files.orientation or None)
    return _with_full_name(how, files.image)


def _with_full_name(load: Callable[[Path], Volume], path: Path) -> Volume:
    """A volume that messages call by its path: in many layouts all files have the same name."""
    try:
        return replace(load(path), name=str(path))
    except VolumeError as error:
        message = str(error).removeprefix(str(path)).removeprefix(path.name)
        raise VolumeError(f"{path}{message}") from error


@contextmanager
def _worker_pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes for the block, None for one; leaving it cancels what has not been started."""
    # A forked copy of a process with threads (torch, ITK) may hang; a spawned one cannot.
    context = multiprocessing.get_context("spawn")
    pool = None
    if workers > 1:
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    except KeyboardInterrupt as error:
        raise DataError(
            "preparation: interrupted; start again to go on: finished subjects are kept."
        ) from error
    except BrokenProcessPool as error:
        raise DataError(
            f"preparation: expected {workers} processes to finish their work, one was killed; "
            "if memory ran out, lower [data] workers, and start again: finished subjects are kept."
        ) from error
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what an interrupt does
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _each(
    pool: ProcessPoolExecutor | None, function: Callable[..., object], jobs: list[tuple]
) -> Iterator[tuple]:
    """The jobs as they are done; the first error is raised."""
    if pool is None:
        for job in jobs:
            function(*job)
            yield job
        return
    futures = {pool.submit(function, *job): job for job in jobs}
    for future in as_completed(futures):
        future.result()
        yield futures[future]


def _worker_count(workers: int, jobs: int) -> int:
    if workers < 0:
        raise DataError(f"[data] workers: expected 0 or more processes, got {workers}.")
    return min(workers or os.cpu_count() or 1, jobs)


def _fingerprint(
    files: SubjectFiles, reference: SubjectFiles, spec: InputSpec, affine: bool
) -> str:
    digest = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
    if not affine:
        digest.update(b"no affine")
    if files.keep_labels:
        digest.update(json.dumps(files.keep_labels).encode())
    if files.orientation:
        digest.update(files.orientation.encode())
    for image in (files.image, files.labels, reference.image):
        for path in files_of(image) if image is not None else ():
            try:
                digest.update(path.read_bytes())
            except OSError as error:
                raise DataError(f"{path}: expected a readable file, got {error}.") from error
    return digest.hexdigest()[:16]


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with staged_file(path) as staging:
        np.savez_compressed(staging, **arrays)


def _read_npz(path: Path, name: str) -> Subject:
    try:
        with np.load(path) as arrays:
            return Subject(name, arrays["image"].astype(np.float32), arrays.get("labels"))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: expected a prepared subject, got a damaged file ({error}); delete it and "
            "start again."
        ) from error

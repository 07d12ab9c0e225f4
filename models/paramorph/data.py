"""Training data: a folder of volumes and label maps, aligned onto one network grid and cached."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paramorph_rt.affine import align_affine
from paramorph_rt.errors import ParamorphError
from paramorph_rt.preprocess import network_grid_for, normalise, resample_to_grid
from paramorph_rt.volume import Volume, check_same_grid, load_labels, load_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jaxtyping import Float, Integer

    from paramorph_rt.bundle import InputSpec

LABELS_SUFFIX = "_labels"


class DataError(ParamorphError, ValueError):
    """A training folder that cannot be used."""


@dataclass(frozen=True)
class SubjectFiles:
    """One subject on disk."""

    name: str
    image: Path
    labels: Path | None


@dataclass(frozen=True)
class Subject:
    """One subject on the network grid.

    Attributes:
        name: From the file.
        image: Intensities in [0, 1], affinely aligned to the reference subject.
        labels: Label map on the same grid, or None.
    """

    name: str
    image: Float[np.ndarray, "d h w"]
    labels: Integer[np.ndarray, "d h w"] | None


def find_subjects(folder: str | Path) -> list[SubjectFiles]:
    """All volumes of a folder, by name, each with its label map if there is one.

    `NAME_labels.nii.gz` holds the labels of the volume `NAME.nii.gz` or `NAME_anything.nii.gz`.

    Raises:
        DataError: No such folder, no volume in it, or a label map without its volume.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of volumes, found none; check the path.")
    files = {_stem(p): p for p in sorted(folder.iterdir()) if p.name.endswith((".nii", ".nii.gz"))}
    labels = {
        s.removesuffix(LABELS_SUFFIX): p for s, p in files.items() if s.endswith(LABELS_SUFFIX)
    }
    subjects = []
    for stem, image in files.items():
        if not stem.endswith(LABELS_SUFFIX):
            owner = next((n for n in labels if stem == n or stem.startswith(f"{n}_")), None)
            subjects.append(SubjectFiles(owner or stem, image, labels.pop(owner, None)))
    if labels:
        raise DataError(
            f"{next(iter(labels.values()))}: expected its volume beside it, found none; add "
            "NAME.nii.gz for every NAME_labels.nii.gz."
        )
    if not subjects:
        raise DataError(f"{folder}: expected .nii or .nii.gz volumes, found none; check the path.")
    return subjects


def prepare_subjects(
    subjects: Iterable[SubjectFiles],
    reference: SubjectFiles,
    spec: InputSpec,
    cache: str | Path,
    report: Callable[[str], None] = print,
) -> list[Subject]:
    """Subjects on the network grid, by the same steps as the runtime takes with a moving image.

    Affine alignment to `reference`, resampling onto the network grid over the reference's
    foreground, min-max to [0, 1]. Each result is kept in `cache` under a name made from the
    content of its files and the settings, so a second run, or one after a kill, only reads.

    Raises:
        VolumeError: A file that cannot be trusted, by name.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    fixed: Volume | None = None
    prepared = []
    for files in subjects:
        path = cache / f"{files.name}-{_fingerprint(files, reference, spec)}.npz"
        if not path.exists():
            fixed = fixed or load_volume(reference.image)
            _write_npz(path, _prepare(files, fixed, spec))
            report(f"prepared {files.name}")
        with np.load(path) as arrays:
            labels = arrays.get("labels")
            prepared.append(Subject(files.name, arrays["image"].astype(np.float32), labels))
    return prepared


def _prepare(files: SubjectFiles, fixed: Volume, spec: InputSpec) -> dict[str, np.ndarray]:
    volume = load_volume(files.image)
    affine = np.eye(4) if files.image.name == fixed.name else align_affine(volume, fixed)
    grid = network_grid_for(fixed, spec)
    intensity = spec.intensity
    image = normalise(
        resample_to_grid(volume, grid, affine),
        intensity.lower_percentile,
        intensity.upper_percentile,
    )
    arrays = {"image": image.astype(np.float16)}  # 11 bits are more than a scanner gives
    if files.labels is not None:
        labels = load_labels(files.labels)
        check_same_grid(volume, labels)
        arrays["labels"] = resample_to_grid(labels, grid, affine, "nearest")
    return arrays


def _fingerprint(files: SubjectFiles, reference: SubjectFiles, spec: InputSpec) -> str:
    digest = hashlib.sha256(json.dumps(asdict(spec), sort_keys=True).encode())
    for path in (files.image, files.labels, reference.image):
        if path is not None:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(partial, path)


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").removesuffix(".nii")

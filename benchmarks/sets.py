"""The sets of pairs that accuracy.py knows, each by a small description.

None of their data is part of this project. A set's folder lies below the one that is named on the
command line; what is made, such as deformed brains, goes into a folder of the run's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk
from nibabel.affines import from_matvec
from scipy.ndimage import gaussian_filter, map_coordinates

from colin import BRAIN
from pairs import Case, write_subject
from paramorph.data import SubjectFiles, each_to_next
from paramorph_rt import Registration
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.resample import resample_to_grid
from paramorph_rt.geometry.spaces import Grid, to_sitk
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.images.volume import Volume, load_labels, load_volume
from paramorph_rt.transforms.itk import write_displacement

if TYPE_CHECKING:
    from jaxtyping import Integer

GREY, WHITE = 2, 3
SEED = 20
FIELD_SIGMA_MM = 14.0  # of the Gaussian that smooths noise into a deformation
FIELD_MEAN_MM = 3.0  # length of its vectors
NOISE = 0.02  # of the bright intensities
MARGIN_VOX = 14  # about the original grid, for what the deformation moves out of it


@dataclass(frozen=True)
class PairSet:
    """Pairs of one kind.

    Attributes:
        title: What they are, for the page.
        folder: Below the folder of all sets.
        find: The pairs, from the set's folder and a folder for what is made.
        affine: What precedes the deformable registration: "affine" or "rigid".
    """

    title: str
    folder: str
    find: Callable[[Path, Path], list[Case]]
    affine: str = "affine"

    def cases(self, data: Path, made: Path) -> list[Case]:
        """All pairs.

        Raises:
            DataError: The folder does not hold two subjects.
        """
        return self.find(data / self.folder, made)


def ring(
    folder: Path, _made: Path, moving: str, fixed: str | None = None, labels: str = "*_labels"
) -> list[Case]:
    """Each subject to the next one, and the last to the first.

    Args:
        folder: Holds the files.
        moving: Name of the moving image, with * for the subject's name, without .nii.gz.
        fixed: The same of the fixed image; None is as of the moving one.
        labels: The same of the label map, on the voxels of both.
    """

    def path(pattern: str, name: str) -> Path:
        return folder / f"{pattern.replace('*', name)}.nii.gz"

    suffix = labels.removeprefix("*")
    names = sorted(p.name.removesuffix(f"{suffix}.nii.gz") for p in folder.glob(f"{labels}.nii.gz"))
    names = [name for name in names if path(moving, name).exists()]

    def subject(pattern: str, name: str) -> SubjectFiles:
        return SubjectFiles(name, path(pattern, name), path(labels, name))

    return [
        Case(subject(moving, one), subject(fixed or moving, other))
        for one, other in each_to_next(names, f"subjects with {moving} and {labels}", folder)
    ]


def native_prostates(folder: Path, made: Path) -> list[Case]:
    """A ring in each of two collections."""
    cases = [
        case
        for name in ("prostate_dx", "prostatex")
        for case in ring(folder / name, made, moving="*_t2")
    ]
    exact = {case.moving.name: on_its_image(case.moving, made) for case in cases}
    return [Case(exact[case.moving.name], exact[case.fixed.name]) for case in cases]


def scanned_twice(folder: Path, made: Path) -> list[Case]:
    """A patient's first scan to the second, onto which the gland is carried rigidly: a
    registration has nothing to add to that."""
    there = folder / "prostatex"
    scans = [there / f"{name}_t2.nii.gz" for name in ("0001", "0001_repeat")]
    each_to_next([scan for scan in scans if scan.exists()], "scans of patient 0001", there)
    first = on_its_image(SubjectFiles("0001", scans[0], there / "0001_labels.nii.gz"), made)
    again, gland = load_volume(scans[1]), load_labels(first.labels)
    rigid = Registration("none")(first.image, again, affine="rigid", refine=()).displacement
    carried = warp_volume(gland, rigid, "nearest").data
    return [Case(first, write_subject(made, "0001_repeat", again, carried))]


def on_its_image(files: SubjectFiles, made: Path) -> SubjectFiles:
    """A subject with its labels on exactly its image's voxels: some masks' headers are rounded."""
    image, labels = load_volume(files.image), load_labels(files.labels)
    data = resample_to_grid(labels, image.grid, interpolation="nearest")
    return write_subject(made, files.name, image, data)


def newborns(moving: str, fixed: str) -> Callable[[Path, Path], list[Case]]:
    """Newborns of which each has a T1 and a T2 on the same voxels."""
    files = {"moving": f"*_{moving}w_brain", "fixed": f"*_{fixed}w_brain"}
    return partial(ring, **files, labels="*_Segmentation")


def colin_to_mni(_folder: Path, made: Path) -> list[Case]:
    """Colin27 with the tissues that its brightness parts, MNI152 with those of its own maps."""
    from nilearn import datasets

    colin = load_volume(BRAIN)
    template = datasets.load_mni152_template(resolution=1)
    grid = Grid(template.shape, template.affine)
    grey, white = (
        load(resolution=1).get_fdata() > 0.5
        for load in (datasets.load_mni152_gm_template, datasets.load_mni152_wm_template)
    )
    mni = Volume(template.get_fdata(dtype=np.float32), grid, "MNI152")
    mni_tissues = (GREY * grey + WHITE * (white & ~grey)).astype(np.uint8)
    return [
        Case(
            write_subject(made, "Colin27", colin, tissues_of(colin)),
            write_subject(made, "MNI152", mni, mni_tissues),
        )
    ]


def tissues_of(t1: Volume) -> Integer[np.ndarray, "i j k"]:
    """Grey and white matter of a skull-stripped T1 by Otsu's thresholds."""
    classes = sitk.OtsuMultipleThresholds(to_sitk(t1.data, t1.grid), 3)
    tissues = sitk.GetArrayFromImage(classes).T  # background, fluid, grey, white
    return np.where(tissues >= GREY, tissues, 0).astype(np.uint8)


def across_contrasts(folder: Path, made: Path, contrast: str) -> list[Case]:
    """A patient's T1 to another's other contrast, and back; both with the tissues of their T1."""
    patients = sorted(path.parent.name for path in folder.glob("*/t1.nii.gz"))
    around = each_to_next(patients, "folders with t1.nii.gz", folder)
    t1, other = {}, {}
    for name in patients:
        image = load_volume(folder / name / "t1.nii.gz")
        t1[name] = write_subject(made, f"{name}_t1", image, tissues_of(image))
        there = folder / name / f"{contrast}.nii.gz"
        other[name] = SubjectFiles(f"{name}_{contrast}", there, t1[name].labels)
    return [Case(t1[one], other[another]) for one, another in around]


def known_fields(folder: Path, made: Path, count: int = 2) -> list[Case]:
    """Brains to themselves, deformed by a known field, with noise."""
    each = [case.moving for case in ring(folder, made, "*_t1")[:count]]
    return [deformed(files, files.image, SEED + n, made) for n, files in enumerate(each)]


def known_fields_across(folder: Path, made: Path, contrast: str) -> list[Case]:
    """Brains to another contrast of themselves, deformed by a known field, with noise."""
    return [
        deformed(case.moving, folder / case.moving.name[:-3] / f"{contrast}.nii.gz", SEED + n, made)
        for n, case in enumerate(across_contrasts(folder, made, contrast))
    ]


def deformed(moving: SubjectFiles, image: Path, seed: int, made: Path) -> Case:
    """A brain, and itself deformed, as the fixed image; the field between them is the truth.

    Fixed is ``image(x + u(x))``, which needs no inverse: u is what a registration has to find.

    Args:
        moving: Image and labels.
        image: On the voxels of `moving`: what is deformed.
        seed: Of the field and of the noise.
        made: Where the files go.
    """
    source, labels = load_volume(image), load_labels(moving.labels)
    grid = source.grid.padded([MARGIN_VOX] * 3)
    truth = smooth_field(grid, source, seed)
    at = np.moveaxis(source.grid.index(grid.positions() + truth.vectors_mm), -1, 0)

    brain = map_coordinates((source.data > 0).astype(np.float32), at, order=1) > 0.5
    data = map_coordinates(source.data.astype(np.float32), at, order=3)
    bright = np.percentile(data[brain], 99)
    data += np.random.default_rng(seed).normal(0, NOISE * bright, data.shape)
    data = np.where(brain, np.maximum(data, 1e-3 * bright), 0).astype(np.float32)
    moved = map_coordinates(labels.data, at, order=0).astype(labels.data.dtype)

    name = f"{moving.name}-deformed-{seed}"
    path = made / f"{name}_field.nii.gz"
    write_displacement(path, truth)
    return Case(moving, write_subject(made, name, Volume(data, grid, name), moved), path)


def smooth_field(grid: Grid, brain: Volume, seed: int) -> DisplacementField:
    """Smooth noise of a few millimetres, then an affine about the brain's middle."""
    random = np.random.default_rng(seed)
    noise = [random.normal(size=grid.shape).astype(np.float32) for _ in range(3)]
    smooth = np.stack([gaussian_filter(n, FIELD_SIGMA_MM / grid.spacing) for n in noise], axis=-1)
    smooth *= FIELD_MEAN_MM / np.linalg.norm(smooth, axis=-1).mean()
    turn = 0.08 * random.normal(size=(3, 3))  # radians and shares: about 5 degrees, 8 %
    matrix = np.eye(3) + turn
    middle = brain.grid.world(np.argwhere(brain.data > 0).mean(axis=0))
    affine = from_matvec(matrix, middle - matrix @ middle + random.normal(0, 3, 3))
    return affine @ DisplacementField(grid, smooth)


def contrasts(contrast: str) -> PairSet:
    """A patient's T1 to another's image of a contrast."""
    find = partial(across_contrasts, contrast=contrast.lower())
    return PairSet(f"T1 → another patient's {contrast}, grey and white matter", "contrasts", find)


T1, T2 = partial(ring, moving="*_t1"), partial(ring, moving="*_t2")
SETS: dict[str, PairSet] = {
    "brain-t1-validation": PairSet(
        "adult T1 brains (OASIS-1, MICCAI 2012 labels)", "brain_t1/validation", T1
    ),
    "newborns-t1": PairSet("newborns' T1 → another's T1", "neonate", newborns("T1", "T1")),
    "newborns-t2": PairSet("newborns' T2 → another's T2", "neonate", newborns("T2", "T2")),
    "newborns-t1-t2": PairSet("newborns' T1 → another's T2", "neonate", newborns("T1", "T2")),
    "promise12-glands": PairSet(
        "prostates in T2 (PROMISE12), the gland, rigid first", "prostate_t2/validation", T2, "rigid"
    ),
    "prostates-native": PairSet(
        "prostates in T2 at native spacing (PROSTATE-DIAGNOSIS, ProstateX), the gland, rigid first",
        "prostate_native",
        native_prostates,
        "rigid",
    ),
    "prostate-twice": PairSet(
        "one patient's prostate in T2, scanned twice (ProstateX)",
        "prostate_native",
        scanned_twice,
        "rigid",
    ),
    "heads-2mm": PairSet("whole heads in T1 (IXI), structures of the brain", "heads_2mm", T1),
    "colin27-mni152": PairSet("Colin27 → MNI152, grey and white matter", "", colin_to_mni),
    "hippocampus": PairSet(
        "hippocampi in T1 (Medical Segmentation Decathlon)", "hippocampus/validation", T1
    ),
    "contrasts-t1": contrasts("T1"),
    "contrasts-t1-t2": contrasts("T2"),
    "contrasts-t1-flair": contrasts("FLAIR"),
    "known-field": PairSet(
        "adult T1 brains to themselves, deformed by a known field",
        "brain_t1/validation",
        known_fields,
    ),
    "known-field-t1-t2": PairSet(
        "T1 to the same patient's T2, deformed by a known field",
        "contrasts",
        partial(known_fields_across, contrast="t2"),
    ),
}

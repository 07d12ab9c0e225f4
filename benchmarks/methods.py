"""The methods that accuracy.py compares: each finds one complete displacement field.

A method reads the pair by its own means, then registers it with its default settings; demons have
none of use, so theirs are below: common ones, not tuned to any data. Only the registration itself
is timed: not starting, reading and loading a model before, nor turning a peer's transform into our
kind of file after. Run as a script, this is the process of one method on one pair.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from isolated import peak_mb
from paramorph_rt import Registration
from paramorph_rt.affine import align_affine
from paramorph_rt.field import DisplacementField
from paramorph_rt.preprocess import resample_to_grid
from paramorph_rt.spaces import Grid, from_sitk, to_sitk
from paramorph_rt.transforms.itk import read_displacement, write_displacement
from paramorph_rt.volume import load_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FIELD = "displacement.nii"
OWN_LABELS = "own_labels.nii"
REPORT = "report.json"

DEMONS_SHRINK_FACTORS = (4, 2, 1)
DEMONS_ITERATIONS = 50  # at each of them
DEMONS_SMOOTHING_VOX = 1.5  # of the whole field, after every iteration


@dataclass(frozen=True)
class Task:
    """One method on one pair; all paths absolute.

    Attributes:
        method: A key of `METHODS`.
        moving: Image.
        fixed: Image.
        moving_labels: For a method that warps them itself, as a check of its field.
        folder: For the results, and whatever a method writes besides.
        threads: For every method alike; those that read it from the environment find it there.
        model: Bundle, for "paramorph".
        engine: `backend:precision`, for "paramorph".
    """

    method: str
    moving: str
    fixed: str
    moving_labels: str
    folder: str
    threads: int
    model: str | None = None
    engine: str | None = None


class Report(dict):
    """What a method tells besides its field: `seconds` and `peak_mb`, and more if it likes."""

    @contextmanager
    def registering(self) -> Iterator[None]:
        """Measure the block; the process's peak memory counts until its end."""
        start = time.perf_counter()
        yield
        self["seconds"] = time.perf_counter() - start
        self["peak_mb"] = peak_mb()


def nothing(task: Task, report: Report) -> DisplacementField:
    """Both images where their headers put them."""
    report |= {"seconds": 0.0, "peak_mb": None}
    return _identity(load_volume(task.fixed).grid)


def affine(task: Task, report: Report) -> DisplacementField:
    """The affine alignment that precedes our network."""
    moving, fixed = load_volume(task.moving), load_volume(task.fixed)
    with report.registering():
        to_moving = align_affine(moving, fixed).affine
    return _identity(fixed.grid).composed_with_affine(to_moving)


def paramorph(task: Task, report: Report) -> DisplacementField:
    """Ours, from affine to field and warped image."""
    moving, fixed = load_volume(task.moving), load_volume(task.fixed)
    start = time.perf_counter()
    register = ENGINES[task.engine](task.model, task.threads)
    report["load_seconds"] = time.perf_counter() - start
    with report.registering():
        result = register(moving, fixed)
    stages = result.metrics["seconds"]
    report["seconds"] = sum(s for stage, s in stages.items() if stage not in ("load", "metrics"))
    report["network_seconds"] = stages["network"]
    return result.displacement


def syn(task: Task, report: Report) -> DisplacementField:
    """ANTs' symmetric normalisation with its default parameters, affine included."""
    import ants

    moving, fixed = ants.image_read(task.moving), ants.image_read(task.fixed)
    prefix = f"{task.folder}/syn_"
    with report.registering():
        found = ants.registration(fixed, moving, type_of_transform="SyN", outprefix=prefix)
    transforms = found["fwdtransforms"]
    labels = ants.apply_transforms(
        fixed, ants.image_read(task.moving_labels), transforms, interpolator="nearestNeighbor"
    )
    ants.image_write(labels, f"{task.folder}/{OWN_LABELS}")
    return read_displacement(Path(ants.apply_transforms(fixed, moving, transforms, compose=prefix)))


def elastix(task: Task, report: Report) -> DisplacementField:
    """elastix: translation, affine, then B-splines, each with its default parameter map."""
    import itk

    moving, fixed = itk.imread(task.moving, itk.F), itk.imread(task.fixed, itk.F)
    parameters = elastix_parameters()
    with report.registering():
        method = itk.ElastixRegistrationMethod.New(fixed, moving, parameter_object=parameters)
        method.SetNumberOfThreads(task.threads)
        method.UpdateLargestPossibleRegion()
    transformix = itk.TransformixFilter.New(
        moving,
        transform_parameter_object=method.GetTransformParameterObject(),
        output_directory=task.folder,
        compute_deformation_field=True,
    )
    transformix.UpdateLargestPossibleRegion()
    path = Path(task.folder) / "elastix.nii"
    itk.imwrite(transformix.GetOutputDeformationField(), path)
    return read_displacement(path)


def elastix_parameters():
    """Its default parameter maps for the three transforms, one after the other."""
    import itk

    parameters = itk.ParameterObject.New()
    for kind in ("translation", "affine", "bspline"):
        parameters.AddParameterMap(parameters.GetDefaultParameterMap(kind))
    # itk-elastix 0.25 crashes when its bending energy counts in several threads at once.
    parameters.SetParameter(2, "UseMultiThreadingForMetrics", "false")
    return parameters


def demons(task: Task, report: Report) -> DisplacementField:
    """SimpleITK's diffeomorphic demons from coarse to fine, after our affine.

    Demons compare intensities as they are, so the moving image's histogram is matched to the fixed
    one's first, with the settings of SimpleITK's example DemonsRegistration2.
    """
    moving, fixed = load_volume(task.moving), load_volume(task.fixed)
    with report.registering():
        to_moving = align_affine(moving, fixed).affine
        aligned = to_sitk(resample_to_grid(moving, fixed.grid, to_moving), fixed.grid)
        target = to_sitk(fixed.data, fixed.grid)
        matched = sitk.HistogramMatching(aligned, target, 1024, 7, True)
        vectors, _ = from_sitk(_demons_field(matched, target))
    return DisplacementField(fixed.grid, vectors).composed_with_affine(to_moving)


def _demons_field(moving: sitk.Image, fixed: sitk.Image) -> sitk.Image:
    method = sitk.DiffeomorphicDemonsRegistrationFilter()
    method.SetNumberOfIterations(DEMONS_ITERATIONS)
    method.SetStandardDeviations(DEMONS_SMOOTHING_VOX)
    field = None
    for factor in DEMONS_SHRINK_FACTORS:
        small_moving, small_fixed = (_shrunk(image, factor) for image in (moving, fixed))
        if field is None:
            field = method.Execute(small_fixed, small_moving)
        else:
            # By the nearest where the coarser grid ends half a voxel short of the finer one.
            field = sitk.Resample(field, small_fixed, useNearestNeighborExtrapolator=True)
            field = method.Execute(small_fixed, small_moving, field)
    return sitk.Cast(field, sitk.sitkVectorFloat32)


def _shrunk(image: sitk.Image, factor: int) -> sitk.Image:
    if factor == 1:
        return image
    sigma = [factor / 2 * spacing for spacing in image.GetSpacing()]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, sigma), [factor] * 3)


def _identity(grid: Grid) -> DisplacementField:
    return DisplacementField(grid, np.zeros((*grid.shape, 3), np.float32))


METHODS: dict[str, Callable[[Task, Report], DisplacementField]] = {
    "nothing": nothing,
    "affine": affine,
    "paramorph": paramorph,
    "demons": demons,
    "elastix": elastix,
    "syn": syn,
}
# Ways to run our network; another backend or precision is another entry.
ENGINES: dict[str, Callable[[str | None, int], Registration]] = {
    "onnxruntime:fp32": lambda model, threads: Registration(model, threads, "onnxruntime", "fp32"),
    "openvino:fp32": lambda model, threads: Registration(model, threads, "openvino", "fp32"),
    "openvino:bf16": lambda model, threads: Registration(model, threads, "openvino", "bf16"),
}


def main() -> None:
    """Run the task of the JSON file that is named."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    report = Report()
    field = METHODS[task.method](task, report)
    folder = Path(task.folder)
    write_displacement(folder / FIELD, field)
    (folder / REPORT).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()

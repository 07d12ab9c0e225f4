"""Peers' registration jobs: read, register, warp image and labels, Dice of all labels, write.

Each takes its default settings; where a package has none, the reason is beside them. A process
loads what its peer needs and nothing else.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from isolated import THREAD_VARIABLES
from jobs import FIELD, METRICS, WARPED, WARPED_LABELS, Task
from paramorph_rt.errors import exit_code
from paramorph_rt.system.stopwatch import Stopwatch

if TYPE_CHECKING:
    import SimpleITK as sitk

    from paramorph_rt.geometry.field import DisplacementField
    from paramorph_rt.images.volume import Volume

    Find = Callable[[Volume, Volume, Task], DisplacementField]

DEMONS_SHRINK_FACTORS = (4, 2, 1)
DEMONS_ITERATIONS = 50  # at each of them
DEMONS_SMOOTHING_VOX = 1.5  # of the whole field, after every iteration
GREEDY_METRIC = "-m NCC 2x2x2 -n 100x50x10"
GREEDY_SMOOTHING = "-s 1.732vox 0.7071vox"  # of the force and of the field
# As FireANTs' quickstart has them; it has no defaults for scales and iterations.
FIREANTS = {"scales": [4, 2, 1], "iterations": [200, 100, 25], "cc_kernel_size": 5}


def threads() -> int:
    """How many this process shall use, as `isolated.limited_to` says."""
    return int(os.environ[THREAD_VARIABLES[0]])


def syn(task: Task, seconds: Stopwatch) -> None:
    """ANTs' symmetric normalisation by antspyx, with its default parameters, affine included."""
    import ants

    with seconds("load"):
        moving, fixed = ants.image_read(task.moving), ants.image_read(task.fixed)
        labels = ants.image_read(task.moving_labels, pixeltype="unsigned int")
    prefix = f"{task.out}/syn_"
    with seconds("register"):
        kind: dict[str, object] = {"type_of_transform": "SyN"}
        if task.affine == "rigid":
            rigid = ants.registration(
                fixed, moving, type_of_transform="Rigid", outprefix=f"{task.out}/rigid_"
            )
            start = rigid["fwdtransforms"]
            kind = {"type_of_transform": "SyNOnly", "initial_transform": start}
        result = ants.registration(fixed, moving, **kind, outprefix=prefix)
    transforms = result["fwdtransforms"]
    with seconds("warp"):
        warped_labels = ants.apply_transforms(
            fixed, labels, transforms, interpolator="nearestNeighbor"
        ).clone("unsigned int")
    with seconds("save"):
        ants.image_write(result["warpedmovout"], f"{task.out}/{WARPED}")
        ants.image_write(warped_labels, f"{task.out}/{WARPED_LABELS}")
        # All transforms as one field: syn_comp.nii.gz.
        field = ants.apply_transforms(fixed, moving, transforms, compose=prefix)
        Path(field).rename(f"{task.out}/{FIELD}")


def elastix(task: Task, seconds: Stopwatch) -> None:
    """elastix by itk-elastix: translation, affine, B-splines, with default parameters."""
    import itk

    with seconds("load"):
        moving, fixed = itk.imread(task.moving, itk.F), itk.imread(task.fixed, itk.F)
        labels = itk.imread(task.moving_labels, itk.F)
    with seconds("register"):
        warped, parameters = itk.elastix_registration_method(
            fixed, moving, parameter_object=elastix_parameters(task.affine)
        )
    with seconds("warp"):
        for number in range(parameters.GetNumberOfParameterMaps()):
            parameters.SetParameter(number, "FinalBSplineInterpolationOrder", "0")
        warped_labels = itk.transformix_filter(labels, parameters)
        integer = itk.Image[itk.SS, 3]
        warped_labels = itk.cast_image_filter(warped_labels, ttype=(type(warped_labels), integer))
    with seconds("save"):
        itk.imwrite(warped, f"{task.out}/{WARPED}")
        itk.imwrite(warped_labels, f"{task.out}/{WARPED_LABELS}")
        # It writes a file of its own as well, in the working folder otherwise.
        field = itk.transformix_deformation_field(moving, parameters, output_directory=task.out)
        itk.imwrite(field, f"{task.out}/{FIELD}")


def elastix_parameters(kind: str):
    """Its default parameter maps for the three transforms, one after the other."""
    import itk

    parameters = itk.ParameterObject.New()
    for each in ("translation", kind, "bspline"):
        parameters.AddParameterMap(parameters.GetDefaultParameterMap(each))
    # itk-elastix 0.25 crashes when its bending energy counts in several threads at once.
    parameters.SetParameter(2, "UseMultiThreadingForMetrics", "false")
    return parameters


def greedy(task: Task, seconds: Stopwatch, options: str = "") -> None:
    """Greedy diffeomorphic registration by picsl-greedy, its affine included.

    Affine and deformable with the same metric and iterations, as its users' guide has them.
    `-sv` in the options is its stationary velocity field, log-demons.

    Source:
        Yushkevich et al., Fast automatic segmentation of hippocampal subfields (2016).
    """
    from picsl_greedy import Greedy3D

    program, log = Greedy3D(), io.StringIO()
    pair = f"-i {task.fixed} {task.moving}"
    affine, warp = f"{task.out}/affine.mat", f"{task.out}/warp.nii.gz"
    freedom = 6 if task.affine == "rigid" else 12

    def run(command: str) -> None:
        program.execute(f"-threads {threads()} {command}", out=log, err=log)

    with seconds("register"):  # it reads and writes files in between, as its command does
        run(f"-a -dof {freedom} -ia-image-centers {GREEDY_METRIC} {pair} -o {affine}")
        run(f"{GREEDY_METRIC} {GREEDY_SMOOTHING} {options} -it {affine} {pair} -o {warp}")
    with seconds("warp"):
        run(
            f"-rf {task.fixed} -rm {task.moving} {task.out}/{WARPED} -ri NN "
            f"-rm {task.moving_labels} {task.out}/{WARPED_LABELS} "
            f"-rc {task.out}/{FIELD} -r {warp} {affine}"
        )


def by_field(task: Task, seconds: Stopwatch, find: Find) -> None:
    """A method that gives a field alone: we read, warp and write.

    Args:
        find: Moving, fixed and the task; gives a complete field.
    """
    from paramorph_rt.geometry.warp import warp_volume
    from paramorph_rt.images.volume import load_labels, load_volume, save_labels, save_volume
    from paramorph_rt.transforms.itk import write_displacement

    with seconds("load"):
        moving, fixed = load_volume(task.moving), load_volume(task.fixed)
        labels = load_labels(task.moving_labels)
    with seconds("register"):
        field = find(moving, fixed, task)
    with seconds("warp"):
        warped, warped_labels = warp_volume(moving, field), warp_volume(labels, field, "nearest")
    with seconds("save"):
        out = Path(task.out)
        write_displacement(out / FIELD, field)
        save_volume(out / WARPED, warped)
        save_labels(out / WARPED_LABELS, warped_labels)


def nothing(_moving: Volume, fixed: Volume, _task: Task) -> DisplacementField:
    """Both images where their headers put them."""
    import numpy as np

    from paramorph_rt.geometry.transform import Affine

    return Affine(np.eye(4)).on(fixed.grid)


def affine(moving: Volume, fixed: Volume, task: Task) -> DisplacementField:
    """The affine alignment that precedes our refinement."""
    from paramorph_rt.geometry.transform import Affine

    return Affine(_our_affine(moving, fixed, task)).on(fixed.grid)


def demons(moving: Volume, fixed: Volume, task: Task) -> DisplacementField:
    """SimpleITK's diffeomorphic demons from coarse to fine.

    They have no settings of use by default; these are common ones, not tuned to any data. Demons
    compare intensities as they are, so the moving image's histogram is matched to the fixed one's
    first, with the settings of SimpleITK's example DemonsRegistration2.
    """
    import SimpleITK as sitk

    from paramorph_rt.geometry.field import DisplacementField
    from paramorph_rt.geometry.resample import resample_to_grid
    from paramorph_rt.geometry.spaces import from_sitk, to_sitk

    to_moving = _our_affine(moving, fixed, task)
    aligned = to_sitk(resample_to_grid(moving, fixed.grid, to_moving), fixed.grid)
    target = to_sitk(fixed.data, fixed.grid)
    matched = sitk.HistogramMatching(aligned, target, 1024, 7, True)
    vectors, _ = from_sitk(_demons_field(matched, target))
    return to_moving @ DisplacementField(fixed.grid, vectors)


def _demons_field(moving: sitk.Image, fixed: sitk.Image) -> sitk.Image:
    import SimpleITK as sitk

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
    import SimpleITK as sitk

    if factor == 1:
        return image
    sigma = [factor / 2 * spacing for spacing in image.GetSpacing()]
    return sitk.Shrink(sitk.SmoothingRecursiveGaussian(image, sigma), [factor] * 3)


def convexadam(moving: Volume, fixed: Volume, task: Task) -> DisplacementField:
    """ConvexAdam with MIND features and its default settings, by PyTorch on the CPU.

    Source:
        Siebert et al., ConvexAdam (2024), doi:10.1109/TMI.2024.3462248; Apache-2.0.
    """
    import numpy as np
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    from paramorph_rt.geometry.field import field_from_network
    from paramorph_rt.geometry.resample import resample_to_grid

    torch.set_num_threads(threads())
    to_moving = _our_affine(moving, fixed, task)
    aligned = resample_to_grid(moving, fixed.grid, to_moving)
    pair = (torch.from_numpy(np.ascontiguousarray(data)) for data in (fixed.data, aligned))
    displacement = convex_adam_pt(*pair)  # voxels of the fixed grid, components last
    field = field_from_network(np.moveaxis(displacement, -1, 0), fixed.grid)
    return to_moving @ field


def fireants(moving: Volume, fixed: Volume, task: Task) -> DisplacementField:
    """FireANTs' greedy registration, by PyTorch on the CPU and its own files.

    From our affine, as demons and ConvexAdam: its own one, tried on one pair of brains, turned by
    15° and took two thirds of the time.

    Source:
        Jena et al., FireANTs (2024), arXiv 2404.01249; run as its licence allows.
    """
    import torch
    from fireants.io.image import BatchedImages, Image
    from fireants.registration.greedy import GreedyRegistration

    from paramorph_rt.geometry.spaces import flip_affine
    from paramorph_rt.transforms.itk import read_displacement

    torch.set_num_threads(threads())
    fixed_images, moving_images = (
        BatchedImages([Image.load_file(path, device="cpu")]) for path in (task.fixed, task.moving)
    )
    to_moving = torch.from_numpy(flip_affine(_our_affine(moving, fixed, task))).float()
    method = GreedyRegistration(
        **FIREANTS,
        fixed_images=fixed_images,
        moving_images=moving_images,
        init_affine=to_moving[None],
    )
    method.optimize()
    method.save_as_ants_transforms(f"{task.out}/{FIELD}")
    return read_displacement(Path(task.out) / FIELD)


def _our_affine(moving: Volume, fixed: Volume, task: Task):
    from paramorph_rt.steps.affine import align_affine

    return align_affine(moving, fixed, "rigid" if task.affine == "rigid" else "auto").affine


PEERS: dict[str, Callable[[Task, Stopwatch], None]] = {
    "nothing": partial(by_field, find=nothing),
    "affine": partial(by_field, find=affine),
    "demons": partial(by_field, find=demons),
    "convexadam": partial(by_field, find=convexadam),
    "syn": syn,
    "elastix": elastix,
    "greedy": greedy,
    "greedy-sv": partial(greedy, options="-sv"),
    "fireants": partial(by_field, find=fireants),
}


def mean_dice(task: Task) -> float | None:
    """Over the labels that both maps have, of the labels that a peer warped and wrote itself."""
    from paramorph_rt.images.volume import load_labels
    from paramorph_rt.metrics import overlap

    warped = load_labels(f"{task.out}/{WARPED_LABELS}", may_be_empty=True)
    fixed, moving = load_labels(task.fixed_labels), load_labels(task.moving_labels)
    return overlap.mean_dice(fixed.data, warped.data, moving.data)


def run(peer: str, task: Task) -> None:
    """Do a peer's job and write its metrics."""
    seconds = Stopwatch({})
    PEERS[peer](task, seconds)
    with seconds("metrics"):
        dice = mean_dice(task)
    metrics = json.dumps({"seconds": seconds.table, "dice": dice})
    (Path(task.out) / METRICS).write_text(metrics, encoding="utf-8")


if __name__ == "__main__":  # the process of `Job.run`
    name, arguments = sys.argv[1:]
    sys.exit(exit_code(name, lambda: run(name, Task(**json.loads(arguments)))))

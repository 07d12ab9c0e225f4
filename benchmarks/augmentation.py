"""Augmenting a pair: this project's against MONAI and TorchIO at comparable strength.

Each pipeline changes pose and shape of both volumes alike, then pose and intensities of each. All
run in turns, in one process, on one thread; times are the CPU seconds of that thread, which other
work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import TYPE_CHECKING

import monai.transforms as mt
import SimpleITK as sitk
import torch
import torchio as tio

from network import smooth_volume
from paramorph.augmentation import Augmentation
from record import write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    Pipeline = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

OURS = Augmentation()


def ours(seed: int) -> Pipeline:
    rng = torch.Generator().manual_seed(seed)
    return lambda moving, fixed: OURS(moving, fixed, rng)


def monai_affine(keys: list[str], rotation_deg: float, scale: float, shift: float) -> object:
    return mt.RandAffined(
        keys,
        prob=1,
        rotate_range=[math.radians(rotation_deg)] * 3,
        scale_range=[scale] * 3,
        translate_range=[shift] * 3,
        mode="bilinear",
        padding_mode="border",
    )


def monai_own(key: str) -> list[object]:
    gammas = (math.exp(-OURS.gamma), math.exp(OURS.gamma))
    return [
        monai_affine([key], OURS.own_rotation_deg, OURS.own_scale, OURS.own_shift_vox),
        mt.RandAdjustContrastd([key], prob=1, gamma=gammas),
        mt.RandBiasFieldd([key], prob=1, degree=3, coeff_range=(0, OURS.bias / 2)),
        mt.RandGaussianNoised([key], prob=1, std=OURS.noise),
    ]


def monai_pipeline(common: list[object], seed: int) -> Pipeline:
    keys = ["moving", "fixed"]
    flip = mt.RandFlipd(keys, prob=OURS.flip_probability, spatial_axis=0)
    compose = mt.Compose([*common, flip, *monai_own("moving"), *monai_own("fixed")])
    compose.set_random_state(seed)

    def augment(moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        changed = compose({"moving": moving[0], "fixed": fixed[0]})
        return tuple(changed[key].as_tensor()[None].clamp(0, 1) for key in keys)

    return augment


def monai_elastic(seed: int) -> Pipeline:
    """Affine and elastic change in one interpolation, the own affine in another."""
    elastic = mt.Rand3DElasticd(
        ["moving", "fixed"],
        sigma_range=(8, 8),
        magnitude_range=(100, 100),  # times noise smoothed over 8 voxels: about 0.4 voxel rms
        prob=1,
        rotate_range=[math.radians(OURS.common_rotation_deg)] * 3,
        scale_range=[OURS.common_scale] * 3,
        mode="bilinear",
        padding_mode="border",
    )
    return monai_pipeline([elastic], seed)


def monai_smooth_deform(seed: int, shape: tuple[int, ...]) -> Pipeline:
    """The common affine, the smooth change and the own affine, in three interpolations."""
    keys = ["moving", "fixed"]
    affine = monai_affine(keys, OURS.common_rotation_deg, OURS.common_scale, 0)
    deform = mt.RandSmoothDeformd(
        keys,
        spatial_size=shape,
        rand_size=[OURS.elastic_knots] * 3,
        prob=1,
        def_range=2 * OURS.common_elastic_vox / min(shape),  # half extents
        field_mode="trilinear",
        grid_mode="bilinear",
        grid_align_corners=True,
    )
    return monai_pipeline([affine, deform], seed)


def torchio_pipeline(seed: int) -> Pipeline:
    """The common affine, the elastic change and the own affine, in three interpolations."""
    s, d = OURS.common_scale, OURS.common_rotation_deg
    common = tio.Compose(
        [
            tio.RandomAffine(scales=(1 - s, 1 + s), degrees=d, isotropic=True),
            tio.RandomElasticDeformation(
                OURS.elastic_knots + 1, OURS.common_elastic_vox, locked_borders=0
            ),
            tio.RandomFlip(axes=0, flip_probability=OURS.flip_probability),
        ]
    )
    s, d = OURS.own_scale, OURS.own_rotation_deg
    own = tio.Compose(
        [
            tio.RandomAffine(
                scales=(1 - s, 1 + s), degrees=d, translation=OURS.own_shift_vox, isotropic=True
            ),
            tio.RandomGamma(log_gamma=OURS.gamma),
            tio.RandomBiasField(coefficients=OURS.bias / 2, order=3),
            tio.RandomNoise(std=(0, OURS.noise)),
        ]
    )
    torch.manual_seed(seed)

    def augment(moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        volumes = {"moving": moving[0], "fixed": fixed[0]}
        pair = common(tio.Subject(**{k: tio.ScalarImage(tensor=v) for k, v in volumes.items()}))
        return tuple(own(pair[key]).data[None].clamp(0, 1) for key in volumes)

    return augment


def measure(shape: tuple[int, ...], runs: int) -> dict[str, object]:
    pipelines = {
        "ours": ours(0),
        "monai elastic": monai_elastic(0),
        "monai smooth deform": monai_smooth_deform(0, shape),
        "torchio": torchio_pipeline(0),
    }
    volume = smooth_volume(shape, 1)
    seconds: dict[str, list[float]] = {name: [] for name in pipelines}
    changes: dict[str, list[float]] = {name: [] for name in pipelines}
    for run in range(runs + 1):
        for name, augment in pipelines.items():
            started = time.process_time()
            moving, fixed = augment(volume, volume.clone())
            elapsed = time.process_time() - started
            assert moving.shape == fixed.shape == volume.shape, name
            change = (moving - volume).abs().mean().item()
            assert 0 < (moving - fixed).abs().mean() < change, f"{name}: the pair is not aligned"
            if run:  # the first warms up
                seconds[name].append(elapsed)
                changes[name].append(change)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "shape": shape,
        "cpu_seconds": seconds,
        "median_cpu_seconds": medians,
        "times_as_long_as_ours": {name: s / medians["ours"] for name, s in medians.items()},
        "mean_change_of_intensity": {name: statistics.mean(c) for name, c in changes.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each, after one to warm up")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    sizes = [measure(shape, args.runs) for shape in ((96, 128, 96), (160, 160, 96))]
    path = write_result("augmentation", {"threads": 1, "sizes": sizes}, ("monai", "torchio"))
    for size in sizes:
        print(*size["shape"])
        for name, median in size["median_cpu_seconds"].items():
            ratio = size["times_as_long_as_ours"][name]
            change = size["mean_change_of_intensity"][name]
            print(f"  {name:20s}{median:8.3f} s{ratio:8.1f} × ours   mean change {change:.3f}")
    print(path)


if __name__ == "__main__":
    main()

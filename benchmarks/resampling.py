"""Ways to bring a displacement field to the fixed image's voxels, and to warp the image by it.

The field is smooth noise on the network's grid. All ways start from the same arrays in memory and
give the same result, which is checked before they are timed in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from onnx import parser as onnx_parser
from scipy.ndimage import gaussian_filter, map_coordinates

from bundles import add_model_option, single_bundle
from colin import write_colin_pair
from evaluation import LabelledPair, load_pair
from pairs import BenchmarkError, labelled_pairs
from paramorph_rt.backends.onnxruntime import ort
from paramorph_rt.errors import exit_code
from paramorph_rt.geometry.compose import itk_transform
from paramorph_rt.geometry.field import DisplacementField
from paramorph_rt.geometry.spaces import Grid, place, to_sitk
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.steps.preparation import network_grid_for
from paramorph_rt.system.threads import itk_threads
from record import add_run_options, write_page, write_result
from tables import markdown_table, origin

OURS = "ours"
SMOOTH_VOXELS, LARGEST_MM = 6.0, 8.0  # of the field
TOLERANCE = 1e-3  # mm; and of the image's range
GRID_SAMPLE = """
    <ir_version: 10, opset_import: ["" : 20]>
    sampled (float[1,C,A,B,D] volume, float[1,I,J,K,3] grid) => (float[1,C,I,J,K] out)
    {{ out = GridSample
        <mode: string = "linear", padding_mode: string = "border", align_corners: int = 1>
        (volume, grid) }}
"""
COLUMNS = (
    ("work", "work", ""),
    ("by", "by", ""),
    ("seconds", "median_seconds", ".3f"),
    ("CPU, s", "median_cpu_seconds", ".3f"),
    ("of ours", "times_ours", ".1f"),
    ("n", "n", "d"),
)

Way = Callable[[], np.ndarray]
Row = dict[str, Any]


def smooth_field(grid: Grid) -> DisplacementField:
    """Noise of a few centimetres' wavelength, the same every time."""
    noise = np.random.default_rng(0).standard_normal((3, *grid.shape)).astype(np.float32)
    smooth = gaussian_filter(noise, (0, *[SMOOTH_VOXELS] * 3))
    return DisplacementField(grid, np.moveaxis(smooth * (LARGEST_MM / np.abs(smooth).max()), 0, -1))


def index_in(source: Grid, points: np.ndarray) -> np.ndarray:
    """World points (i, j, k, 3) as voxel indices of a grid, (3, i, j, k), float32."""
    to_index = np.linalg.inv(source.affine)
    index = points.astype(np.float32) @ to_index[:3, :3].T.astype(np.float32)
    return np.moveaxis(index + to_index[:3, 3].astype(np.float32), -1, 0)


def sampled_by_scipy(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Components (c, ...) at indices, beyond the border its values."""
    return np.stack([map_coordinates(v, index, order=1, mode="nearest") for v in values])


def normalised(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Indices as PyTorch and ONNX want them: -1 to 1, the last axis first."""
    last = (np.array(shape, np.float32) - 1).reshape(3, 1, 1, 1)
    return np.ascontiguousarray(np.moveaxis((2 * index / last - 1)[::-1], 0, -1))[np.newaxis]


def sampled_by_torch(values: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The same by PyTorch."""
    volume = torch.from_numpy(np.ascontiguousarray(values))[None]
    grid = torch.from_numpy(normalised(index, values.shape[1:]))
    sample = torch.nn.functional.grid_sample
    return sample(volume, grid, padding_mode="border", align_corners=True)[0].numpy()


class SampledByOnnxRuntime:
    """The same by ONNX Runtime."""

    def __init__(self, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        model = onnx_parser.parse_model(GRID_SAMPLE.format())
        self._session = ort.InferenceSession(model.SerializeToString(), options)

    def __call__(self, values: np.ndarray, index: np.ndarray) -> np.ndarray:
        feeds = {"volume": values[np.newaxis], "grid": normalised(index, values.shape[1:])}
        return self._session.run(None, feeds)[0][0]


def ways(pair: LabelledPair, coarse: DisplacementField, threads: int) -> dict[str, dict[str, Way]]:
    """What is timed: by the work, and by who does it; ours first."""
    grid, moving = pair.fixed.grid, pair.moving
    field = coarse.resampled_to(grid)
    by_onnxruntime = SampledByOnnxRuntime(threads)
    samplers = {
        "SciPy": sampled_by_scipy,
        "PyTorch": sampled_by_torch,
        "ONNX Runtime": by_onnxruntime,
    }
    components = np.ascontiguousarray(np.moveaxis(coarse.vectors_mm, -1, 0))

    def fine(sample: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Way:
        return lambda: np.moveaxis(
            sample(components, index_in(coarse.grid, grid.positions())), 0, -1
        )

    def warped(sample: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Way:
        def work() -> np.ndarray:
            index = index_in(moving.grid, grid.positions() + field.vectors_mm)
            return sample(moving.data[np.newaxis], index)[0]

        return work

    def by_transform() -> np.ndarray:
        resampler = sitk.ResampleImageFilter()
        resampler.SetSize(grid.shape)
        place(resampler, grid)
        resampler.SetTransform(itk_transform([field]))
        resampler.SetDefaultPixelValue(float(moving.data.min()))
        return sitk.GetArrayFromImage(resampler.Execute(to_sitk(moving.data, moving.grid))).T

    return {
        "field to the fixed grid": {
            OURS: lambda: coarse.resampled_to(grid).vectors_mm,
            "ITK's resampling": lambda: coarse._resampled_by_itk(grid).vectors_mm,
            **{name: fine(sample) for name, sample in samplers.items()},
        },
        "warp of the image": {
            OURS: lambda: warp_volume(moving, field).data,
            "ITK's resampling": by_transform,
            **{name: warped(sample) for name, sample in samplers.items()},
        },
    }


def check(work: str, found: Mapping[str, np.ndarray], inside: np.ndarray) -> None:
    """All ways agree; of images, where the samples lie in the moving one.

    Raises:
        BenchmarkError: One does not.
    """
    ours = found[OURS]
    scale = 1.0 if ours.ndim == 4 else float(np.ptp(ours))
    where = np.ones(ours.shape[:3], bool) if ours.ndim == 4 else inside
    for by, other in found.items():
        off = float(np.abs(other - ours)[where].max()) / scale
        if not off <= TOLERANCE:
            raise BenchmarkError(
                f"{work}, {by}: expected what we get to {TOLERANCE:g}, got {off:.2g}; correct it."
            )


def timed(way: Way) -> tuple[float, float]:
    """Seconds on the clock, and of all threads."""
    clock, cpu = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - clock, time.process_time() - cpu


def measure(all_ways: Mapping[str, Mapping[str, Way]], runs: int) -> list[Row]:
    """Medians of each way, in turns."""
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(runs):
        for work, each in all_ways.items():
            for by, way in each.items():
                seconds.setdefault((work, by), []).append(timed(way))
    rows = []
    for (work, by), measured in seconds.items():
        clock, cpu = zip(*measured, strict=True)
        ratios = [one / ours for one, (ours, _) in zip(clock, seconds[work, OURS], strict=True)]
        rows.append(
            {
                **{"work": work, "by": by, "n": runs, "seconds": clock},
                "median_seconds": statistics.median(clock),
                "median_cpu_seconds": statistics.median(cpu),
                "times_ours": statistics.median(ratios),
            }
        )
    return rows


def page(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    return (
        f"# {name}\n\nWritten by `benchmarks/resampling.py` from `{name}.json`: {origin(result)}; "
        f"{result['threads']} threads; from {' × '.join(map(str, result['network_shape']))} to "
        f"{' × '.join(map(str, result['shape']))} voxels. ITK's resampling of an image is by its "
        "displacement field transform, ours by its warp filter; SciPy has one thread.\n\n"
        + markdown_table(result["rows"], COLUMNS)
    )


def run(args: argparse.Namespace) -> None:
    """Check, measure; write the JSON and the table."""
    _, bundle = single_bundle(args.model)
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as name, itk_threads(args.threads):
        if args.folder is None:
            pair = load_pair(*write_colin_pair(Path(name), args.size))
        else:
            pair = load_pair(*labelled_pairs(args.folder)[0])
        coarse = smooth_field(network_grid_for(pair.fixed, bundle.inputs))
        work = ways(pair, coarse, args.threads)
        fine = coarse.resampled_to(pair.fixed.grid)
        index = index_in(pair.moving.grid, fine.grid.positions() + fine.vectors_mm)
        last = np.subtract(pair.moving.grid.shape, 1).reshape(3, 1, 1, 1)
        inside = ((index >= 0.01) & (index <= last - 0.01)).all(axis=0)
        for title, each in work.items():
            check(title, {by: way() for by, way in each.items()}, inside)
        rows = measure(work, args.runs)
    path = write_result(
        args.name,
        {
            "threads": args.threads,
            "load_average": os.getloadavg(),
            "network_shape": coarse.grid.shape,
            "shape": pair.fixed.grid.shape,
            "rows": rows,
        },
        packages=["scipy"],
    )
    write_page(path, page(json.loads(path.read_text(encoding="utf-8")), path.stem))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, help="NAME_*.nii.gz with NAME_labels.nii.gz (default: Colin27)")
    add("--size", type=int, default=181, help="of Colin27's cube (default: %(default)s)")
    add_model_option(parser)
    add_run_options(parser, "resampling", runs=11, of="of each way")
    args = parser.parse_args(argv)
    return exit_code("resampling.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

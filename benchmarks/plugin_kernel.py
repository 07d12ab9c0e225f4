"""The TensorRT plugin's kernel on a GPU: first right, then its speed against PyTorch and a copy.

Needs a GPU, PyTorch with CUDA and nvcc; no TensorRT. Every contender is a CUDA graph of many
launches on inputs that take turns, so that neither Python nor the card's cache is what is timed.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import math
import shutil
import statistics
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmark import OUT, Benchmark, option
from paramorph.warp import grid_sample_3d
from record import BenchmarkError, Result, Row
from tables import markdown_table

ROOT = Path(__file__).parents[1]
SAMPLINGS = list(itertools.product(["linear", "nearest"], ["border", "zeros"], [True, False]))
WILD = [1e6, -1e6, 3e9, -3e9, 1e30, -1e30, torch.inf, -torch.inf]
CACHE_BYTES = 512 << 20  # inputs that take turns fill more than any card's cache
REPLAYS = 30
Call = Callable[[], object]
CASES = (  # shape, voxels, whether the displacement is noise
    ((1, 1, 160, 160, 96), 8, False),
    ((1, 1, 160, 192, 160), 8, False),
    ((1, 3, 160, 160, 96), 8, False),
    ((1, 1, 160, 160, 96), 8, True),
)


def compile_kernel(nvcc: str, architecture: str) -> Path:
    """The kernel as a shared library behind one C function."""
    library = ROOT / "build" / "plugin_kernel.so"
    library.parent.mkdir(exist_ok=True)
    sources = [ROOT / "benchmarks" / "plugin_kernel.cu", ROOT / "export" / "plugin" / "kernel.cu"]
    command = [nvcc, "-std=c++17", "-O3", f"-arch={architecture}", "-shared", "-Xcompiler", "-fPIC"]
    command += ["-I", ROOT / "export" / "plugin", *sources, "-o", library]
    found = shutil.which(nvcc)
    if found is not None:  # NVIDIA's wheels keep the runtime in lib, where their nvcc does not look
        command += ["-L", Path(found).parents[1] / "lib"]
    subprocess.run(command, check=True)
    return library


class Kernel:
    """The compiled kernel, called like `paramorph.warp.grid_sample_3d`."""

    def __init__(self, library: Path) -> None:
        self._run = ctypes.CDLL(str(library)).run
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._run.argtypes = [number, *[pointer] * 4, *[number] * 3, pointer]

    def __call__(
        self,
        volume: torch.Tensor,
        displacement: torch.Tensor,
        interpolation: str = "linear",
        padding: str = "border",
        align_corners: bool = True,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Parameters are those of `grid_sample_3d`, and where the result goes."""
        if out is None:  # poisoned: a voxel that is not written shows
            size = (*volume.shape[:2], *displacement.shape[2:])
            out = volume.new_full(size, torch.nan)
        assert volume.is_contiguous()
        assert displacement.is_contiguous()
        shape = (ctypes.c_int32 * 8)(*volume.shape, *displacement.shape[2:])
        status = self._run(
            volume.dtype == torch.float16,
            volume.data_ptr(),
            displacement.data_ptr(),
            out.data_ptr(),
            shape,
            interpolation == "nearest",
            padding == "zeros",
            align_corners,
            torch.cuda.current_stream().cuda_stream,
        )
        assert status == 0, f"the kernel failed with {status}"
        return out


def check(kernel: Callable[..., torch.Tensor], device: str = "cuda") -> float:
    """Hold the kernel to PyTorch on one device; the largest difference of the inexact cases."""
    generator = torch.Generator(device).manual_seed(0)
    largest = 0.0
    for dtype, options in itertools.product([torch.float32, torch.float16], SAMPLINGS):
        # Exact: whole numbers, quarter voxels, axes of 2^k + 1 voxels; few enough voxels that the
        # products of the weights fit float32. Then any displacement.
        size = (9, 5, 17) if options[0] == "linear" else (33, 17, 65)
        volume = torch.randint(0, 256, (2, 3, *size), device=device, generator=generator).to(dtype)
        steps = torch.randint(-60, 61, (2, 3, *size), device=device, generator=generator)
        displacement = steps / 4
        wild = torch.tensor(WILD, device=device)[steps.abs() % len(WILD)]
        displacement = torch.where(steps % 11 == 0, wild, displacement)
        expected = grid_sample_3d(volume, displacement, *options)
        assert torch.equal(kernel(volume, displacement, *options), expected), (dtype, options)
        if options[0] == "nearest":
            continue  # elsewhere ties fall either way, with PyTorch's rounding of positions
        volume = torch.rand(2, 3, 41, 30, 50, device=device, generator=generator).to(dtype)
        displacement = torch.randn(2, 3, 37, 43, 35, device=device, generator=generator) * 4
        expected = grid_sample_3d(volume, displacement, *options)
        difference = (kernel(volume, displacement, *options) - expected).abs().max().item()
        # float32: PyTorch's positions pass through normalised coordinates; half: one rounding
        assert difference < (1e-4 if dtype == torch.float32 else 1e-3), (dtype, options, difference)
        largest = max(largest, difference)
    return largest


def smooth_displacement(batch: int, size: tuple[int, ...], voxels: float) -> torch.Tensor:
    """As a registration's: up to so many voxels, varying over 16."""
    coarse = torch.rand(batch, 3, *[max(2, n // 16) for n in size], device="cuda") * 2 - 1
    return F.interpolate(coarse, size=size, mode="trilinear", align_corners=True) * voxels


def microseconds(calls: list[Call]) -> float:
    """Median time of one call, when all of them run one after another."""
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(REPLAYS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(calls))
    return statistics.median(times[3:])


def grid_of(volume: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
    """The grid that PyTorch samples, which the kernel never writes."""
    axes = [torch.arange(n, device="cuda", dtype=torch.float32) for n in displacement.shape[2:]]
    at = displacement + torch.stack(torch.meshgrid(*axes, indexing="ij"))
    last = torch.tensor(volume.shape[2:], device="cuda").reshape(3, 1, 1, 1) - 1
    return (at * 2 / last - 1).flip(1).permute(0, 2, 3, 4, 1).contiguous()


def measure(kernel: Kernel, shape: tuple[int, ...], voxels: float, noise: bool) -> Row:
    """Microseconds of every call for volumes of one shape (b, c, d, h, w)."""
    batch, channels, *size = shape
    count = batch * math.prod(size)
    # The fewest bytes: every tensor once. PyTorch with a ready grid moves as many.
    moved = {"fp32": count * (12 + 8 * channels), "fp16": count * (12 + 4 * channels)}
    turns = max(4, CACHE_BYTES // moved["fp32"])
    displacements = [smooth_displacement(batch, tuple(size), voxels) for _ in range(turns)]
    if noise:
        displacements = [torch.randn_like(u) * voxels for u in displacements]
    volumes = [torch.rand(shape, device="cuda") for _ in range(turns)]
    calls = calls_of(kernel, volumes, displacements)
    for kind, size_in_bytes in moved.items():
        calls[f"copy of the bytes of {kind}"] = copies(size_in_bytes, turns)
    times = {name: microseconds(each) for name, each in calls.items()}
    return {
        "shape": shape,
        "displacement": f"{'noise of sd' if noise else 'smooth, up to'} {voxels:g} voxels",
        "microseconds": times,
        "fewest_bytes": moved,
        "of_the_copys_rate": {
            kind: times[f"copy of the bytes of {kind}"] / times[f"kernel {kind}"] for kind in moved
        },
        "times_as_fast_as_torch": times["torch grid_sample from the displacement"]
        / times["kernel fp32"],
    }


def calls_of(
    kernel: Kernel, volumes: list[torch.Tensor], displacements: list[torch.Tensor]
) -> dict[str, list[Call]]:
    """By name, a call for each volume and its displacement."""

    def calls(
        sample: Callable[..., object], sources: list[torch.Tensor], *others: list[torch.Tensor]
    ) -> list[Call]:
        return [partial(sample, *each) for each in zip(sources, *others, strict=True)]

    def into(out: torch.Tensor, *arguments: Any) -> object:
        return kernel(*arguments, out=out)

    def nearest(out: torch.Tensor, *arguments: Any) -> object:
        return kernel(*arguments, "nearest", out=out)

    halves = [v.half() for v in volumes]
    outs, half_outs = [v.clone() for v in volumes], [v.clone() for v in halves]
    grids = [grid_of(v, u) for v, u in zip(volumes, displacements, strict=True)]
    sample = partial(F.grid_sample, padding_mode="border", align_corners=True)
    return {
        "kernel fp32": calls(into, outs, volumes, displacements),
        "kernel fp16": calls(into, half_outs, halves, displacements),
        "kernel fp32 nearest": calls(nearest, outs, volumes, displacements),
        "torch grid_sample, grid given": calls(sample, volumes, grids),
        "torch grid_sample from the displacement": calls(grid_sample_3d, volumes, displacements),
    }


def copies(size_in_bytes: int, turns: int) -> list[Call]:
    """Copies that read and write so many bytes."""
    half = size_in_bytes // 8  # elements of float32: read one half, write the other
    buffers = [torch.rand(2 * half, device="cuda") for _ in range(turns)]
    return [partial(b[half:].copy_, b[:half]) for b in buffers]


def run(args: argparse.Namespace) -> Row | list[Path]:
    """Compile, check, measure."""
    if not args.compile_only and not torch.cuda.is_available():
        raise BenchmarkError("expected PyTorch with a GPU, got one without; see nvidia-smi.")
    library = compile_kernel(args.nvcc, args.architecture)
    if args.compile_only:
        return []
    torch.manual_seed(0)
    kernel = Kernel(library)
    difference = check(kernel)
    card = torch.cuda.get_device_properties(0)
    return {
        "gpu": card.name,
        "compute_capability": f"{card.major}.{card.minor}",
        "cuda": torch.version.cuda,
        "max_difference_inexact": difference,
        "cases": [measure(kernel, *case) for case in CASES],
    }


def body(result: Result) -> str:
    """The text of a result's page."""
    text = (
        "Equals PyTorch where that is exact, elsewhere within "
        f"{result['max_difference_inexact']:.1e}.\n"
    )
    for case in result["cases"]:
        rates = case["of_the_copys_rate"]
        rows = [{"call": name, "µs": value} for name, value in case["microseconds"].items()]
        text += (
            f"\n## {' × '.join(map(str, case['shape']))}, {case['displacement']}\n\n"
            + markdown_table(rows, (("call", "call", ""), ("µs", "µs", ".1f")))
            + f"\nOf the copy's rate: fp32 {rates['fp32']:.2f}, fp16 {rates['fp16']:.2f}.\n"
        )
    return text


OPTIONS = (
    option("--nvcc", default="nvcc"),
    option("--architecture", default="native", help="nvcc's -arch"),
    OUT,
    option("--compile-only", action="store_true", help="needs no GPU"),
)
BENCHMARK = Benchmark(run, body, OPTIONS)

if __name__ == "__main__":
    BENCHMARK.exit()

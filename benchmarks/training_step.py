"""Steps of training at the paper's size on a GPU: seconds and memory, with recompute and without.

Needs PyTorch with CUDA alone: made-up volumes, and of the training its network, losses, precision
and optimiser, with one pair a step and both directions learned. Each variant has its share of the
time, and the result is written after each.

    PYTHONPATH=runtime:models python benchmarks/training_step.py --out DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmark import OUT, Benchmark, option
from costs import timed, within
from paramorph import CONFIGS, ParaMorph
from paramorph.losses import LossConfig, loss_terms, total
from paramorph.warp import warp
from record import BenchmarkError, Row
from tables import page_of_rows
from volumes import smooth_volume

VARIANTS = (  # precision, recompute
    ("bf16", False),
    ("bf16", True),
    ("float32", False),
    ("float32", True),
)
COLUMNS = (
    ("precision", "precision", ""),
    ("recompute", "recompute", ""),
    ("steps / s", "steps_per_second", ".3f"),
    ("first step, s", "first_seconds", ".1f"),
    ("peak GPU memory, MB", "peak_memory_mb", ".0f"),
)


def one_step(
    network: ParaMorph,
    optimizer: torch.optim.Optimizer,
    moving: torch.Tensor,
    fixed: torch.Tensor,
    precision: str,
) -> float:
    """Its loss."""
    loss = LossConfig(labels=0)
    with torch.autocast(moving.device.type, torch.bfloat16, enabled=precision == "bf16"):
        there, back = network.both_ways(moving, fixed)
    terms = [
        loss_terms(loss, warp(source, u.float(), network.config.sampling), target, u.float())
        for source, target, u in ((moving, fixed, there), (fixed, moving, back))
    ]
    value = sum(total(loss, t) for t in terms) / len(terms)
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value.item()


def measure(precision: str, recompute: bool, args: argparse.Namespace) -> Row:
    """Seconds of each step after the first, and the most memory, or why there are none."""
    row: Row = {"precision": precision, "recompute": recompute}
    torch.manual_seed(0)
    on_gpu = args.device == "cuda"
    try:
        network = ParaMorph(CONFIGS[args.size]).to(args.device).train()
        network = network.to(memory_format=torch.channels_last_3d)
        if recompute:
            network.recompute_activations()
        optimizer = torch.optim.Adam(network.parameters(), 5e-4, amsgrad=True)
        volumes = (torch.from_numpy(smooth_volume(tuple(args.shape), n)) for n in (1, 2))
        moving, fixed = (v[None, None].to(args.device) for v in volumes)
        losses = []

        def step() -> None:
            losses.append(one_step(network, optimizer, moving, fixed, precision))

        first = timed(step).seconds
        left = args.seconds / len(VARIANTS) - first
        seconds = within(step, sys.maxsize, left, at_least=1)
    except torch.OutOfMemoryError as err:
        return row | {"error": str(err).splitlines()[0]}
    return row | {
        "seconds": seconds,
        "steps_per_second": len(seconds) / sum(seconds),
        "first_seconds": first,
        "losses": [losses[0], losses[-1]],
        "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None,
    }


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Measure every variant; write the result after each."""
    on_gpu = args.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        raise BenchmarkError(
            "expected PyTorch with a GPU, got one without; see nvidia-smi, or pass --device cpu."
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    gpu = torch.cuda.get_device_name() if on_gpu else "no GPU"
    result: Row = {"gpu": gpu, "size": args.size, "shape": args.shape, "rows": []}
    for precision, recompute in VARIANTS:
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        result["rows"].append(measure(precision, recompute, args))
        path = BENCHMARK.write(args.name, result, args.out)
    yield path


TEXT = "{size} at {shape[0]} × {shape[1]} × {shape[2]}."
OPTIONS = (
    option("--device", choices=("cuda", "cpu"), default="cuda", help="cpu proves the script"),
    option("--size", default="paramorph", choices=list(CONFIGS)),
    option("--shape", type=int, nargs=3, default=[160, 160, 96]),
    option("--seconds", type=float, default=220, help="of all together"),
    OUT,
)
BODY = page_of_rows(TEXT, COLUMNS, ("precision", "recompute"))
BENCHMARK = Benchmark(run, BODY, OPTIONS)

if __name__ == "__main__":
    BENCHMARK.exit()

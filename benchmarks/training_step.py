"""Steps of training at the paper's size on a GPU: seconds and memory, with recompute and without.

Needs PyTorch with CUDA alone: made-up volumes, and of the training its network, losses, precision
and optimiser, with one pair a step and both directions learned. Each variant has its share of the
time, and the result is written after each.

    PYTHONPATH=runtime:models python benchmarks/training_step.py --out DIR
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from paramorph import CONFIGS, ParaMorph
from paramorph.losses import LossConfig, loss_terms, total
from paramorph.warp import warp
from record import write_result

VARIANTS = (  # precision, recompute
    ("bf16", False),
    ("bf16", True),
    ("float32", False),
    ("float32", True),
)


def smooth_volume(shape: tuple[int, ...], seed: int, device: str) -> torch.Tensor:
    """(1, 1, D, H, W) in [0, 1], with structure as large as anatomy has."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *[max(2, n // 8) for n in shape], generator=generator)
    return F.interpolate(coarse, size=shape, mode="trilinear").to(device)


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


def measure(precision: str, recompute: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step after the first, and the most memory, or why there are none."""
    row: dict[str, Any] = {"precision": precision, "recompute": recompute}
    torch.manual_seed(0)
    on_gpu = args.device == "cuda"
    try:
        network = ParaMorph(CONFIGS[args.size]).to(args.device).train()
        network = network.to(memory_format=torch.channels_last_3d)
        if recompute:
            network.recompute_activations()
        optimizer = torch.optim.Adam(network.parameters(), 5e-4, amsgrad=True)
        moving, fixed = (smooth_volume(tuple(args.shape), n, args.device) for n in (1, 2))
        losses, seconds = [], []
        began = time.perf_counter()
        while len(seconds) < 2 or time.perf_counter() - began < args.seconds / len(VARIANTS):
            started = time.perf_counter()
            losses.append(one_step(network, optimizer, moving, fixed, precision))
            seconds.append(time.perf_counter() - started)
    except torch.OutOfMemoryError as err:
        return row | {"error": str(err).splitlines()[0]}
    return row | {
        "seconds": seconds[1:],
        "steps_per_second": (len(seconds) - 1) / sum(seconds[1:]),
        "first_seconds": seconds[0],
        "losses": [losses[0], losses[-1]],
        "peak_memory_mb": torch.cuda.max_memory_allocated() / 1e6 if on_gpu else None,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu proves the script alone")
    add("--size", default="paramorph", choices=list(CONFIGS), help="(default: %(default)s)")
    add("--shape", type=int, nargs=3, default=[160, 160, 96], help="(default: %(default)s)")
    add("--seconds", type=float, default=220, help="of all together (default: %(default)s)")
    add("--out", type=Path, metavar="DIR", help="of the result (default: results)")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "training_step.py: expected PyTorch with a GPU, got one without; see nvidia-smi, or "
            "pass --device cpu.",
            file=sys.stderr,
        )
        return 1
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    result: dict[str, Any] = {"size": args.size, "shape": args.shape, "rows": []}
    result["gpu"] = torch.cuda.get_device_name() if args.device == "cuda" else "no GPU"
    for precision, recompute in VARIANTS:
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        row = measure(precision, recompute, args)
        result["rows"].append(row)
        path = write_result("training_step", result, folder=args.out)
        shown = ("precision", "recompute", "steps_per_second", "peak_memory_mb", "error")
        print({key: row[key] for key in shown if key in row}, flush=True)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

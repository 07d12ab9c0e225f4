"""The paper-size network in PyTorch against a plain transcription of its description.

Both compute the same function of the same weights (checked first), in turns, in one process:
fp32, CPU, batch 1.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from paramorph.checkpoint import reference_name
from plain_transcription import PlainTranscription
from random_weights import random_network
from record import write_result


def smooth_volume(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """(1, 1, D, H, W) in [0, 1], with structure as large as anatomy has."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *[n // 8 for n in shape], generator=generator)
    return F.interpolate(coarse, size=shape, mode="trilinear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[160, 160, 96])
    parser.add_argument("--runs", type=int, default=5, help="of each, after one to warm up")
    args = parser.parse_args()

    network = random_network()
    config = network.config
    # Contiguous, as a checkpoint's weights are; the network's own lie channels last.
    state = {reference_name(n): t.contiguous() for n, t in network.state_dict().items()}
    contenders = {
        "paramorph": network,
        "transcription": PlainTranscription(state, config.window, config.fusion),
    }
    moving, fixed = (smooth_volume(tuple(args.shape), seed) for seed in (1, 2))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        first = {name: run(moving, fixed) for name, run in contenders.items()}
        difference = (first["paramorph"] - first["transcription"]).abs().max().item()
        largest = first["transcription"].abs().max().item()
        print(f"displacements up to {largest:.2f} voxel, difference up to {difference:.1e}")
        # Random weights amplify float32 rounding; tests/models/test_golden.py holds the precision.
        assert difference < 1e-3 * largest, "the two do not compute the same"
        for _ in range(args.runs):
            for name, run in contenders.items():
                started = time.perf_counter()
                run(moving, fixed)
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "shape": args.shape,
        "threads": torch.get_num_threads(),
        "max_displacement_vox": largest,
        "max_difference_vox": difference,
        "seconds": seconds,
        "median_seconds": medians,
        "ratio": medians["transcription"] / medians["paramorph"],
    }
    path = write_result("network", result)
    print(
        f"paramorph {medians['paramorph']:.1f} s, transcription {medians['transcription']:.1f} s, "
        f"ratio {result['ratio']:.2f}; {path}"
    )


if __name__ == "__main__":
    main()

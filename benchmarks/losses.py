"""What the losses cost, forward and backward, and local correlation against plainer formulations.

The formulations of local correlation compute the same (checked first). All run in turns, in one
process, on one thread; times are the CPU seconds of that thread, which other work on the machine
disturbs least.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from network import smooth_volume
from paramorph import losses
from record import write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

WINDOW = 9


def correlation(box_mean: Callable[[Tensor], Tensor], w: Tensor, f: Tensor) -> Tensor:
    mean_w, mean_f, mean_ww, mean_ff, mean_wf = map(box_mean, (w, f, w * w, f * f, w * f))
    covariance = mean_wf - mean_w * mean_f
    variance_w = (mean_ww - mean_w * mean_w).clamp_min(0)
    variance_f = (mean_ff - mean_f * mean_f).clamp_min(0)
    return 1 - (covariance * covariance / (variance_w * variance_f + 1e-8)).mean()


def full_convolution(x: Tensor) -> Tensor:
    """The window as one kernel of ones."""
    kernel = torch.ones(1, 1, WINDOW, WINDOW, WINDOW)
    return F.conv3d(x, kernel, padding=WINDOW // 2) / WINDOW**3


def pooling_by_axis(x: Tensor) -> Tensor:
    """An average pooling along each axis."""
    for axis in range(3):
        kernel = [WINDOW if axis == other else 1 for other in range(3)]
        x = F.avg_pool3d(x, kernel, stride=1, padding=[k // 2 for k in kernel])
    return x


def cumulative_sums(x: Tensor) -> Tensor:
    """Differences of cumulative sums along each axis."""
    for axis in (2, 3, 4):
        n, padding = x.shape[axis], [0] * 6
        padding[8 - 2 * axis : 10 - 2 * axis] = WINDOW // 2 + 1, WINDOW // 2
        sums = F.pad(x, padding).cumsum(axis)
        x = (sums.narrow(axis, WINDOW, n) - sums.narrow(axis, 0, n)) / WINDOW
    return x


def smooth(channels: int, shape: tuple[int, ...], seed: int) -> Tensor:
    volumes = [smooth_volume(shape, 10 * seed + channel) for channel in range(channels)]
    return torch.cat(volumes, dim=1)


def contenders(shape: tuple[int, ...]) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """By name, a loss and what it is differentiated by."""
    warped, fixed, displacement = smooth(1, shape, 1), smooth(1, shape, 2), smooth(3, shape, 3)
    eight = (smooth(8, shape, 4) > 0.5).float()
    formulations = (full_convolution, pooling_by_axis, cumulative_sums)
    return {
        "ncc": (lambda w: losses.local_ncc(w, fixed, WINDOW), warped),
        **{
            f"ncc by {box.__name__}": (lambda w, box=box: correlation(box, w, fixed), warped)
            for box in formulations
        },
        **{
            name: (lambda w, loss=loss: loss(w, fixed), warped)
            for name, loss in losses.SIMILARITIES.items()
            if name != "ncc"
        },
        "smoothness": (losses.gradient_smoothness, displacement),
        "bending": (losses.bending_energy, displacement),
        "folding": (losses.folding_penalty, displacement),
        "dice of 8 labels": (lambda w: losses.label_dice_loss(w, eight), smooth(8, shape, 5)),
    }


def kept_mib(loss: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """What the forward pass keeps for the backward pass."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(x.clone().requires_grad_())
    return sum(kept.values()) / 2**20


def measure(shape: tuple[int, ...], runs: int) -> dict[str, object]:
    every = contenders(shape)
    gradients = {}
    for name, (loss, x) in every.items():
        x = x.clone().requires_grad_()
        loss(x).backward()  # warms up as well
        gradients[name] = x.grad
    largest = gradients["ncc"].abs().max()
    differences = {
        name: ((gradient - gradients["ncc"]).abs().max() / largest).item()
        for name, gradient in gradients.items()
        if name.startswith("ncc by")
    }
    # Cumulative sums round most: their numbers grow with the volume, the window's do not.
    assert max(differences.values()) < 1e-3, f"the formulations differ: {differences}"
    seconds: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(runs):
        for name, (loss, x) in every.items():
            x = x.clone().requires_grad_()
            started = time.process_time()
            loss(x).backward()
            seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "shape": shape,
        "max_relative_gradient_difference": differences,
        "cpu_seconds": seconds,
        "median_cpu_seconds": medians,
        "times_as_long_as_ncc": {name: s / medians["ncc"] for name, s in medians.items()},
        "kept_for_backward_mib": {name: kept_mib(*of) for name, of in every.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="of each, after one to warm up")
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [measure(shape, args.runs) for shape in ((96, 128, 96), (160, 160, 96))]
    path = write_result("losses", {"threads": 1, "window": WINDOW, "sizes": sizes})
    for size in sizes:
        print(*size["shape"])
        for name, median in size["median_cpu_seconds"].items():
            kept = size["kept_for_backward_mib"][name]
            ratio = size["times_as_long_as_ncc"][name]
            print(f"  {name:27s}{median:8.3f} s{ratio:8.2f} × ncc{kept:8.0f} MiB kept")
    print(path)


if __name__ == "__main__":
    main()

"""Weights of the paper's size from a seed: `python benchmarks/random_weights.py OUT.safetensors`.

What they compute is nothing, but what it costs is the same. They are of unit gain, so that rounding
is not amplified on the way.
"""

from __future__ import annotations

import sys

import torch

from paramorph import CONFIGS, ParaMorph
from paramorph.checkpoint import WeightsInfo, save_weights

SHAPE = (160, 160, 96)


def main(path: str) -> None:
    """Write them."""
    torch.manual_seed(0)
    network = ParaMorph(CONFIGS["paramorph"])
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    info = WeightsInfo("paramorph", network.config, SHAPE, provenance={"data": "none"})
    save_weights(path, network.state_dict(), info)


if __name__ == "__main__":
    main(sys.argv[1])

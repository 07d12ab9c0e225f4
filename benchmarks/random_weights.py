"""Weights of the paper's size from a seed: `python benchmarks/random_weights.py OUT.safetensors`.

What they compute is nothing, but what it costs is the same. They are of unit gain, so that rounding
is not amplified on the way, and go back from windows as the reference does, so that the plain
transcription runs them.
"""

from __future__ import annotations

import sys

import torch

from paramorph import CONFIGS, ParaMorph
from paramorph.checkpoint import WeightsInfo, save_weights

SHAPE = (160, 160, 96)


def random_network(name: str = "paramorph") -> ParaMorph:
    """A named configuration with seeded weights, for inference."""
    torch.manual_seed(0)
    network = ParaMorph(CONFIGS[name].with_options(window_return="reference")).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return network


def main(path: str) -> None:
    network = random_network()
    info = WeightsInfo("paramorph", network.config, SHAPE, provenance={"data": "none"})
    save_weights(path, network.state_dict(), info)


if __name__ == "__main__":
    main(sys.argv[1])

"""A feature network in a bundle: traced for two images, stored in half, held against PyTorch."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import nn

from paramorph.checkpoint import load_feature_weights
from paramorph_export.errors import ExportError
from paramorph_export.storage import stored_small
from paramorph_export.trace import traced
from paramorph_export.verify import GraphSession, random_pair
from paramorph_rt.bundle import NetworkEntry
from paramorph_rt.bundle.manifest import network_entry
from paramorph_rt.bundle.names import FEATURES, INPUTS
from paramorph_rt.system.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from paramorph.checkpoint import FeatureInfo, WeightsInfo
    from paramorph.feature_network import FeatureNetwork

    Shape = tuple[int, int, int]

WEIGHTS = "features.safetensors"
#: Largest difference of a feature to PyTorch's, as a share of the codes' length. On noise,
#: a network that tells labels sharply makes more of rounding than on images: up to 1.4e-3 was seen.
TOLERANCE = 3e-3


class FeatureGraph(nn.Module):
    """What is exported: the features of both images, the moving one's first."""

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return self.network(torch.cat([moving, fixed]))


def write_features(
    folder: Path, weights: Path, registration: WeightsInfo | FeatureInfo, shapes: Sequence[Shape]
) -> dict[str, Any]:
    """Write the graphs of all shapes and their weights; returns what the manifest says of them.

    Args:
        folder: Of the bundle that is being written.
        weights: Of a feature network, trained on the grid of the registration network.
        registration: What is recorded about that one.
        shapes: Volume sizes (D, H, W), the first that of the manifest's grid.

    Raises:
        ExportError: Another grid or other intensities, or a graph that computes something else.
    """
    network, info = load_feature_weights(weights)
    _check_same_input(info, registration, weights)
    shutil.copyfile(weights, folder / WEIGHTS)
    networks = []
    for shape in dict.fromkeys(shapes):
        suffix = "" if shape == shapes[0] else f".{'x'.join(map(str, shape))}"
        path = folder / f"features{suffix}.onnx"
        examples = torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)
        model = stored_small(traced(FeatureGraph(network), examples, (FEATURES,)), folder / WEIGHTS)
        onnx.save(model, path)
        networks.append(
            network_entry(
                NetworkEntry(path.name, "fp32", shape, weights=WEIGHTS),
                nodes=len(model.graph.node),
                verification=verify_features(path, network, shape),
            )
        )
    return {
        "name": info.name,
        "channels": info.network.channels,
        "smoothing": info.network.smoothing,
        "network": info.network.as_dict(),
        "inputs": list(INPUTS),
        "networks": networks,
        "provenance": {"weights_sha256": sha256_of(weights), **info.provenance},
    }


def verify_features(path: Path, network: FeatureNetwork, shape: Shape) -> dict[str, Any]:
    """Run the file in ONNX Runtime and the network in PyTorch on a random pair.

    Raises:
        ExportError: A feature differs by more than `TOLERANCE`.
    """
    moving, fixed = random_pair(shape, seed=0)
    with torch.inference_mode():
        expected = FeatureGraph(network)(
            *(torch.from_numpy(v)[None, None] for v in (moving, fixed))
        )
    (features,) = GraphSession(path).run(moving, fixed, (FEATURES,))
    largest = float(np.abs(features - expected.numpy()).max()) / network.config.strength
    if not largest <= TOLERANCE:  # also true for NaN
        raise ExportError(
            f"{path.name}: expected features within {TOLERANCE} of PyTorch's, got {largest:.2g}; "
            "report this with your versions of torch, onnx and onnxruntime."
        )
    return {"reference": f"PyTorch {torch.__version__}, float32", "max_difference": largest}


def _check_same_input(
    features: FeatureInfo, registration: WeightsInfo | FeatureInfo, path: Path
) -> None:
    for name in ("spacing_mm", "orientation", "lower_percentile", "upper_percentile"):
        ours, theirs = getattr(features, name), getattr(registration, name)
        if ours != theirs:
            raise ExportError(
                f"{path}: expected features of the registration network's {name} {theirs}, got "
                f"{ours}; train both on one grid."
            )

"""A small network with the graph of the paper's size, exported once."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from paramorph import CONFIGS, ParaMorph
from paramorph.checkpoint import WeightsInfo, load_weights, save_weights
from paramorph_export import bundle as bundle_module
from paramorph_export.storage import whole
from paramorph_export.trace import onnx_from_network

SHAPE = (32, 64, 96)
NETWORK = "registration.onnx"


def write_weights(path: Path, seed: int = 0, **options: object) -> Path:
    """As deep as the paper's network but narrow, moving by about a voxel."""
    torch.manual_seed(seed)
    config = CONFIGS["paramorph-tiny"].with_options(
        depths=(2, 2, 4, 2), window=(2, 3, 2), **options
    )
    network = ParaMorph(config)
    with torch.no_grad():
        network.decoder.head.weight.normal_(std=0.1)
    info = WeightsInfo("tiny", config, SHAPE, (2.0, 2.0, 2.0), "LPS", 1.0, 99.0, {"data": "none"})
    save_weights(path, network.state_dict(), info)
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="session")
def bundle(weights) -> Path:
    """The bundle of `weights`."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[2] / "export"))
    try:
        import to_onnx
    finally:
        sys.path.pop(0)
    out = weights.parent / "bundle"
    assert to_onnx.main(["--weights", str(weights), "--out-dir", str(out)]) == 0
    return out


@pytest.fixture(scope="session")
def two_passes(tmp_path_factory) -> Path:
    """The graph of a network that warps and composes inside."""
    folder = tmp_path_factory.mktemp("two-passes")
    network, _ = load_weights(write_weights(folder / "weights.safetensors", passes=2))
    onnx.save(onnx_from_network(network, SHAPE), folder / "registration.onnx")
    return folder / "registration.onnx"


@pytest.fixture
def to_onnx(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "export")
    import to_onnx

    return to_onnx


@pytest.fixture
def instant_trace(bundle, monkeypatch):
    """Exports that need not wait for the tracer: it gives the graph that it gave before."""
    monkeypatch.setattr(bundle_module, "onnx_from_network", lambda *_: whole(bundle / NETWORK))

"""A pyramid network through the same export and engines as ParaMorph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from paramorph import CONFIGS
from paramorph.checkpoint import WeightsInfo, save_weights
from paramorph.pyramid import PyramidNetwork
from paramorph_rt.backends.onnxruntime import OnnxRuntimeBackend
from paramorph_rt.backends.openvino import OpenVinoBackend
from paramorph_rt.bundle import load_bundle

SHAPE = (32, 64, 32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = PyramidNetwork(CONFIGS["pyramid-tiny"]).eval()
    with torch.no_grad():
        for flow in network.flows:
            flow.head.weight.normal_(std=0.05)
    return network


@pytest.mark.slow
def test_every_engine_computes_what_pytorch_computes(network, tmp_path, to_onnx):
    weights, out = tmp_path / "pyramid.safetensors", tmp_path / "bundle"
    info = WeightsInfo("pyramid", network.config, SHAPE, (2.0, 2.0, 2.0))
    save_weights(weights, network.state_dict(), info)
    arguments = ["--weights", str(weights), "--out-dir", str(out), "--precision", "fp32", "fp16"]
    assert to_onnx.main(arguments) == 0
    bundle = load_bundle(out)
    assert bundle.configuration["kind"] == "pyramid"
    moving, fixed = np.random.default_rng(1).random((2, *SHAPE), np.float32)
    with torch.no_grad():
        volumes = (torch.from_numpy(v)[None, None] for v in (moving, fixed))
        expected = network(*volumes)[0].numpy()
    assert abs(expected).max() > 0.5
    file = bundle.verified_path(bundle.network().file)
    for engine in (OnnxRuntimeBackend(file, 1), OpenVinoBackend(file, 1)):
        with engine:
            assert abs(engine.run(moving, fixed) - expected).max() < 1e-3
    half = next(entry for entry in bundle.networks if entry.precision == "fp16")
    operators = Counter(node.op_type for node in onnx.load(out / half.file).graph.node)
    assert operators["GridSample3D"] >= 4 * (network.config.squarings + 1)

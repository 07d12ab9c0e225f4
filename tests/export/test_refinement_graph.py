"""The graph of one level of the refinement, which TensorRT builds."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnxruntime
import pytest

from paramorph_export.refinement import level_graph, refinement_graph
from paramorph_rt.refinement.graph import numbers_of
from paramorph_rt.refinement.settings import Level

LEVEL = Level(3.0, 2, step=1.5, force_sigma=1.7, field_sigma=0.7, features=3.0)
SPACING, SHAPE = (3.0, 2.0, 2.5), (9, 12, 10)


def volumes(channels: int | None) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    kinds = {"moving": 1, "fixed": 1, "counts": 1, "displacement": 3}
    if channels:
        kinds |= {"moving_features": channels, "fixed_features": channels}
    return {name: rng.random((1, c, *SHAPE), np.float32) for name, c in kinds.items()}


@pytest.mark.parametrize("channels", [None, 4])
def test_a_levels_graph_computes_what_the_graph_of_all_levels_does(channels):
    feeds, numbers = volumes(channels), numbers_of(LEVEL, SPACING, channels is not None)
    graphs = level_graph(LEVEL, SPACING, SHAPE, channels), refinement_graph(channels is not None)
    found, expected = (
        onnxruntime.InferenceSession(
            graph.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(["refined"], given)[0]
        for graph, given in zip(graphs, (feeds, feeds | numbers), strict=True)
    )
    assert np.abs(expected - feeds["displacement"]).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt-rtx-cu13, of the extra tensorrt-rtx",
)
@pytest.mark.parametrize("channels", [None, 4])
def test_a_levels_graph_becomes_an_engine(channels):
    import tensorrt_rtx

    builder = tensorrt_rtx.Builder(tensorrt_rtx.Logger())
    network, config = builder.create_network(0), builder.create_builder_config()
    parser = tensorrt_rtx.OnnxParser(network, tensorrt_rtx.Logger())
    assert parser.parse(level_graph(LEVEL, SPACING, SHAPE, channels).SerializeToString())
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt_rtx.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None

"""Features and refinement as one network: the same field as by the runtime's own passes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from scipy.ndimage import map_coordinates

from paramorph.checkpoint import load_feature_weights
from paramorph_export import refined
from paramorph_export.bundle import Graphs, write_bundle
from paramorph_export.engine import add_engines
from paramorph_export.errors import ExportError
from paramorph_export.features import FeatureGraph
from paramorph_export.refined import refined_graph, refinement_by, verify_refined
from paramorph_export.storage import whole
from paramorph_export.trace import traced
from paramorph_export.verify import GraphSession, random_pair
from paramorph_rt import Registration
from paramorph_rt.bundle import load_bundle
from paramorph_rt.cli import main
from paramorph_rt.errors import BundleError
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, save_volume

from .test_features import write_features

GRID = (24, 24, 24)
FINEST = (48, 48, 48)  # of 1 mm, where the network's voxels have 2


def a_pair() -> tuple[Volume, Volume]:
    """A structured ball, and the same beside it."""
    grid = Grid((48, 46, 44), np.eye(4))
    i, j, k = np.indices(grid.shape)
    inside = (i - 24) ** 2 + (j - 23) ** 2 + (k - 22) ** 2 < 18**2
    image = np.where(inside, 60 + 20 * np.sin(i / 5) * np.cos(j / 6 + k / 7), 0)
    fixed = Volume(image.astype(np.float32), grid, "fixed")
    return Volume(np.roll(fixed.data, 2, 1), grid, "moving"), fixed


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return write_features(tmp_path_factory.mktemp("f") / "features.safetensors", shape=GRID)


@pytest.fixture(scope="module")
def bundle(features) -> Path:
    out = features.parent / "bundle"
    write_bundle(out, None, Graphs(halves=["fp16"]), features=features, refined=2)
    return out


def test_the_network_has_no_loop_and_samples_by_the_plugins_node(bundle):
    nodes = Counter(node.op_type for node in whole(bundle / "registration.onnx").graph.node)
    steps = 4 + 2 + 2 + 1
    features_too = 4 + 2 + 2  # not at 1 mm, where the network's voxels are too coarse
    assert nodes["Loop"] == 0
    assert nodes["GridSample"] == 0
    # The moving image and the field in each step, features, and the moving image in the end.
    assert nodes["GridSample3D"] == 2 * steps + features_too + 1


def test_the_field_is_that_of_the_runtimes_passes(bundle, features):
    network, _ = load_feature_weights(features)
    refinement = refinement_by(features, 2)
    moving, fixed = random_pair(FINEST, seed=3)
    expected = refined.refined(network, refinement, moving, fixed)
    session = GraphSession(bundle / "registration.onnx")
    displacement, warped = session.run(moving, fixed, ("displacement", "warped"))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(displacement[0], expected, atol=5e-3)
    places = np.indices(FINEST) + displacement[0]
    by_scipy = map_coordinates(moving, places, order=1, mode="nearest")
    np.testing.assert_allclose(warped[0, 0], by_scipy, atol=1e-4)


def test_a_registration_comes_to_the_same_by_the_network_as_by_itself(bundle, features, to_onnx):
    plain = features.parent / "plain"
    assert to_onnx.main(["--features", str(features), "--out-dir", str(plain)]) == 0
    moving, fixed = a_pair()
    by_network = Registration(bundle, 2, "onnxruntime")(moving, fixed, affine=False)
    by_runtime = Registration(plain, 2, "onnxruntime")(moving, fixed, affine=False, refine=2)
    told = by_runtime.metrics["refinement"]
    levels = [level for level in told["levels"] if level["spacing_mm"] >= 1]
    assert by_network.metrics["refinement"] == {**told, "engine": "network", "levels": levels}
    assert "refine" not in by_network.metrics["seconds"]
    # But the network sees images that were first on the grid of 1 mm.
    ours, theirs = (result.displacement.vectors_mm for result in (by_network, by_runtime))
    assert np.linalg.norm(theirs, axis=-1).mean() > 0.5
    assert np.linalg.norm(ours - theirs, axis=-1).mean() < 0.1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_run_it(bundle, engine):
    if engine == "openvino":
        pytest.importorskip("openvino", reason="needs openvino")
    moving, fixed = a_pair()
    result = Registration(bundle, 2, engine)(moving, fixed, affine=False)
    assert result.metrics["backend"] == f"{engine}-cpu"
    assert result.metrics["ncc"]["after"] > result.metrics["ncc"]["before"]
    assert result.metrics["nonpositive_jacobian_percent"] == 0


def test_another_refinement_is_refused(bundle):
    moving, fixed = a_pair()
    register = Registration(bundle, 2, "onnxruntime")
    assert register(moving, fixed, affine=False, refine=2).metrics["refinement"] is not None
    for iterations in (0, 5):
        with pytest.raises(BundleError, match="the refinement that its network does itself"):
            register(moving, fixed, affine=False, refine=iterations)


@pytest.mark.parametrize(
    "entry", [7, {"levels": 7}, {"levels": [{"spacing": 1}]}, {"smoothing": 0, "levels": []}]
)
def test_a_malformed_entry_is_refused(bundle, tmp_path, entry):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    (copy / "manifest.json").write_text(json.dumps(manifest | {"refined": entry}))
    with pytest.raises(BundleError, match="expected the entries of format version"):
        load_bundle(copy)


def test_half_is_of_the_features_alone(bundle):
    halves = {onnx.TensorProto.FLOAT16}
    model = onnx.load(bundle / "registration.fp16.onnx")
    stored = {c.name.split(".")[0] for c in model.graph.initializer if c.data_type in halves}
    assert stored == {"features"}
    measured = load_bundle(bundle).manifest["networks"][1]["verification"]
    assert 0 < measured["mean_difference_vox"] < 0.01


def test_a_network_that_computes_something_else_is_refused(bundle, features):
    network, _ = load_feature_weights(features)
    with torch.no_grad():
        network.head.weight.mul_(-1)
    with pytest.raises(ExportError, match="of the runtime's refinement on average"):
        verify_refined(bundle / "registration.onnx", network, refinement_by(features, 2))


def test_the_graph_of_features_stays_as_it_is(features):
    network, _ = load_feature_weights(features)
    examples = torch.rand(1, 1, *GRID), torch.rand(1, 1, *GRID)
    graph = traced(FeatureGraph(network), examples, ("features",))
    before = graph.SerializeToString()
    refined_graph(graph, refinement_by(features, 1))
    assert graph.SerializeToString() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--refined"], "--refined: expected --features, but no --weights"),
        (["--features", "F", "--refined", "--shape", "32", "32", "32"], "expected --features, but"),
        (["--features", "F", "--weights", "W", "--refined"], "expected --features, but no"),
        (["--features", "FEATURES", "--refined", "0"], "expected at least 1 iteration, got 0"),
    ],
)
def test_what_cannot_be_made_is_refused(to_onnx, features, tmp_path, capsys, words, message):
    words = [str(features) if word == "FEATURES" else word for word in words]
    assert to_onnx.main([*words, "--out-dir", str(tmp_path / "bundle")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


def test_the_command_tells_what_refined(bundle, tmp_path):
    for name, volume in zip(("moving", "fixed"), a_pair(), strict=True):
        save_volume(tmp_path / f"{name}.nii.gz", volume)
    words = ["infer", "--moving", tmp_path / "moving.nii.gz", "--fixed", tmp_path / "fixed.nii.gz"]
    words += ["--model", bundle, "--backend", "onnxruntime", "--no-affine", "--out-dir"]
    assert main([*map(str, words), str(tmp_path / "out")]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["refinement"]["engine"] == "network"
    assert metrics["network_grid"]["shape"] == list(FINEST)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs tensorrt-rtx-cu13, of the extra tensorrt-rtx",
)
def test_it_becomes_an_engine(bundle, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    (entry,) = add_engines(copy, ["rtx3080"], "tensorrt-rtx")
    assert entry["shape"] == list(FINEST)
    assert load_bundle(copy).engines[0].compute_capability == "8.6"

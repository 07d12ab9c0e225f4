"""A bundle with features: written, verified, run by each engine, used by a registration."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
import torch

from paramorph.checkpoint import FeatureInfo, save_weights
from paramorph.feature_network import FeatureConfig, FeatureNetwork
from paramorph_export.bundle import write_bundle
from paramorph_export.errors import ExportError
from paramorph_export.refinement import REFINEMENT_GRAPHS
from paramorph_rt import Registration
from paramorph_rt.backends import choose_features
from paramorph_rt.bundle import load_bundle
from paramorph_rt.cli import main
from paramorph_rt.errors import BundleError
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.images.volume import Volume, save_volume
from paramorph_rt.refinement import graph

from .conftest import SHAPE

CONFIG = FeatureConfig((4, 8, 8), 6, 7, 5)


def write_features(path: Path, **changes) -> Path:
    torch.manual_seed(1)
    network = FeatureNetwork(CONFIG)
    facts = {"shape": SHAPE, "spacing_mm": (2.0, 2.0, 2.0), "orientation": "LPS"}
    percentiles = {"lower_percentile": 1.0, "upper_percentile": 99.0}
    info = FeatureInfo("tiny-features", CONFIG, **facts | percentiles | changes)
    save_weights(path, network.state_dict(), info, torch.float16)
    return path


@pytest.fixture(scope="module")
def with_features(weights, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    features = write_features(folder / "features.safetensors")
    write_bundle(folder / "bundle", weights, features=features)
    return folder / "bundle"


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_give_the_networks_features(with_features, engine):
    if engine == "openvino":
        pytest.importorskip("openvino", reason="needs openvino")
    rng = np.random.default_rng(0)
    moving, fixed = rng.random((2, *SHAPE), dtype=np.float32)
    found = choose_features(load_bundle(with_features), engine, "fp32", 2).run(moving, fixed)
    torch.manual_seed(1)
    network = FeatureNetwork(CONFIG).eval().half().float()
    with torch.no_grad():
        wanted = network(torch.from_numpy(np.stack([moving, fixed]))[:, None])
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize(
    ("engine", "precision", "expected"),
    [("openvino", "auto", None), ("openvino", "fp32", "fp32"), ("onnxruntime", "auto", "fp32")],
)
def test_features_are_bf16_where_the_cpu_has_it(with_features, engine, precision, expected):
    openvino = pytest.importorskip("openvino", reason="needs openvino")
    if expected is None:
        capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        expected = "bf16" if "BF16" in capabilities else "fp32"
    assert choose_features(load_bundle(with_features), engine, precision, 2).precision == expected


def test_a_registration_compares_features_and_needs_no_displacement(with_features):
    register = Registration(with_features, 2, "onnxruntime")
    moving, fixed = a_pair()
    found = register(moving, fixed, affine=False, refine=6)
    assert found.metrics["refinement"]["features"] is True
    assert "features" in found.metrics["seconds"]
    assert "network" not in found.metrics["seconds"]
    assert found.metrics["ncc"]["after"] > found.metrics["ncc"]["before"]
    plain = register(moving, fixed, affine=False, refine=0)
    assert "network" in plain.metrics["seconds"]


def a_pair() -> tuple[Volume, Volume]:
    grid = Grid((40, 60, 70), np.diag([2.0, 2.0, 2.0, 1.0]))
    i, j, k = np.indices(grid.shape)
    inside = ((i - 20) / 16) ** 2 + ((j - 30) / 24) ** 2 + ((k - 35) / 28) ** 2 < 1
    image = np.where(inside, 60 + 20 * np.sin(i / 3) * np.cos(j / 4 + k / 5), 0)
    fixed = Volume(image.astype(np.float32), grid, "fixed")
    moving = Volume(np.roll(image, 1, 1).astype(np.float32), grid, "moving")
    return moving, fixed


def test_an_altered_file_of_features_is_refused(with_features, tmp_path):
    import shutil

    from paramorph_rt.errors import BundleError

    copy = shutil.copytree(with_features, tmp_path / "bundle")
    path = copy / "features.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="the file was altered"):
        Registration(copy, 2, "onnxruntime")


def test_features_of_another_grid_are_refused(weights, tmp_path):
    features = write_features(tmp_path / "f.safetensors", spacing_mm=(1.0, 1.0, 1.0))
    with pytest.raises(ExportError, match="train both on one grid"):
        write_bundle(tmp_path / "bundle", weights, features=features)
    assert not (tmp_path / "bundle").exists()


def test_every_bundle_carries_the_refinement(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["refinement"] == list(graph.FILES.values())
    for name in graph.FILES.values():
        assert name in manifest["files"]


@pytest.mark.parametrize("name", REFINEMENT_GRAPHS)
def test_the_runtimes_graphs_are_those_of_this_source(name):
    written = Path(graph.__file__).with_name(name).read_bytes()
    wanted = REFINEMENT_GRAPHS[name]().SerializeToString()
    assert onnx.load_from_string(written) == onnx.load_from_string(wanted)


def to_onnx() -> ModuleType:
    """The script, as a module."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "export"))
    try:
        return importlib.import_module("to_onnx")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def features_alone(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    features = write_features(folder / "features.safetensors")
    words = ["--features", str(features), "--out-dir", str(folder / "bundle")]
    assert to_onnx().main(words) == 0
    assert to_onnx().main([*words, "--precision", "fp16", "--force"]) == 1
    assert to_onnx().main(["--out-dir", str(folder / "nothing")]) == 1
    return folder / "bundle"


def test_a_model_may_consist_of_features_alone(features_alone, with_features):
    moving, fixed = a_pair()
    alone, both = (
        Registration(folder, 2, "onnxruntime")(moving, fixed, affine=False, refine=2)
        for folder in (features_alone, with_features)
    )
    assert alone.metrics["model"] == "tiny-features"
    np.testing.assert_allclose(
        alone.displacement.vectors_mm, both.displacement.vectors_mm, atol=1e-5
    )
    with pytest.raises(BundleError, match="expected a refinement that compares its features"):
        Registration(features_alone, 2)(moving, fixed, refine=0)


def test_commands_run_a_model_of_features_alone(features_alone, tmp_path, capsys):
    moving, fixed = a_pair()
    for name, volume in (("moving", moving), ("fixed", fixed)):
        save_volume(tmp_path / f"{name}.nii.gz", volume)
    words = ["infer", "--moving", tmp_path / "moving.nii.gz", "--fixed", tmp_path / "fixed.nii.gz"]
    words += ["--model", features_alone, "--no-affine", "--out-dir"]
    assert main([*map(str, words), str(tmp_path / "off"), "--refine", "off"]) == 1
    assert "expected a refinement that compares its features" in capsys.readouterr().err
    request = [str(tmp_path / "out"), "--refine", "1", "--backend", "onnxruntime"]
    assert main([*map(str, words), *request]) == 0
    assert main(["info", "--json", "--model", str(features_alone)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [network["file"] for network in found["model"]["feature_networks"]] == ["features.onnx"]
    assert any(way["precisions"] for way in found["backends"])


def test_a_card_names_the_model(features_alone, tmp_path, capsys):
    weights = features_alone / "features.safetensors"
    card = tmp_path / "knee-small.md"
    words = ["--features", str(weights), "--card", str(card), "--out-dir", str(tmp_path / "bundle")]
    head = (
        "---\nlicense: mit\nlimits: knees only\nmodel-index:\n- results:\n"
        "  - dataset: {name: four knees}\n    metrics: [{type: dice, value: 0.9}]\n---\n# Knees\n"
    )
    for text in ("# Knees\n", head.replace("limits", "borders")):
        card.write_text(text, encoding="utf-8")
        assert to_onnx().main(words) == 1
        assert "expected a model card that begins with YAML" in capsys.readouterr().err
    card.write_text(head, encoding="utf-8")
    assert to_onnx().main(words) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.name == "knee-small"
    assert bundle.manifest["card"] == {
        "license": "mit",
        "limits": "knees only",
        "results": [{"on": "four knees", "dice": 0.9}],
    }

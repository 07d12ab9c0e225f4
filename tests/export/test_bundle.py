from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch

from paramorph.checkpoint import load_weights
from paramorph_export import bundle as bundle_module
from paramorph_export import verify as verify_module
from paramorph_export.errors import ExportError
from paramorph_export.graph import for_cpus
from paramorph_export.trace import RegistrationGraph, onnx_from_network
from paramorph_export.verify import verify
from paramorph_rt.backends.onnxruntime import OnnxRuntimeBackend
from paramorph_rt.bundle import load_bundle
from paramorph_rt.geometry.field import field_from_network
from paramorph_rt.geometry.spaces import Grid
from paramorph_rt.geometry.warp import warp_volume
from paramorph_rt.images.volume import Volume
from paramorph_rt.system.files import sha256_of

from .conftest import NETWORK, SHAPE, write_weights


def test_graph_is_small_and_standard_but_for_one_node(bundle):
    model = onnx.load(bundle / NETWORK)
    onnx.checker.check_model(model)
    operators = [(node.domain, node.op_type) for node in model.graph.node]
    assert "ScatterND" not in {op for _, op in operators}
    assert [op for domain, op in operators if domain] == ["GridSample3D"]
    assert [(f.domain, f.name) for f in model.functions] == [("paramorph", "GridSample3D")]
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 20), ("paramorph", 1)}


def test_inputs_and_outputs_are_named_and_shaped_as_promised(bundle):
    graph = onnx.load(bundle / NETWORK).graph
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*graph.input, *graph.output)
    }
    one, three = (1, 1, *SHAPE), (1, 3, *SHAPE)
    assert shapes == {"moving": one, "fixed": one, "displacement": three, "warped": one}


def test_file_computes_what_pytorch_computes(bundle, weights):
    network, _ = load_weights(weights)
    measured = verify(bundle / NETWORK, network, SHAPE, seed=7)
    assert measured["max_displacement_vox"] > 0.1
    assert measured["max_difference_vox"] < 1e-4
    assert measured["max_warped_difference"] < 1e-4


@pytest.mark.slow
def test_composed_fields_are_exported_like_everything_else(tmp_path):
    weights = write_weights(tmp_path / "weights.safetensors", passes=2, integration_steps=4)
    network, _ = load_weights(weights)
    shape = (32, 32, 64)
    onnx.save(onnx_from_network(network, shape), tmp_path / NETWORK)
    measured = verify(tmp_path / NETWORK, network, shape)
    assert measured["max_displacement_vox"] > 0.1
    assert measured["max_difference_vox"] < 1e-3


def test_verification_notices_other_weights(bundle, tmp_path):
    other, _ = load_weights(write_weights(tmp_path / "other.safetensors", seed=1))
    with pytest.raises(ExportError, match=r"expected ONNX Runtime within 0\.001 voxel of PyTorch"):
        verify(bundle / NETWORK, other, SHAPE)


def test_manifest_says_all_that_the_runtime_needs(bundle, weights):
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["grid"] == {
        "shape": list(SHAPE),
        "spacing_mm": [2.0, 2.0, 2.0],
        "orientation": "LPS",
    }
    assert manifest["intensity"]["upper_percentile"] == 99.0
    (entry,) = manifest["networks"]
    assert (entry["file"], entry["precision"]) == (NETWORK, "fp32")
    assert entry["shape"] == manifest["grid"]["shape"]
    assert manifest["files"][NETWORK]["sha256"] == sha256_of(bundle / NETWORK)
    assert manifest["provenance"]["weights_sha256"] == sha256_of(weights)
    assert manifest["provenance"]["data"] == "none"
    assert entry["verification"]["max_difference_vox"] <= 1e-3
    assert load_bundle(bundle).inputs.grid.shape == SHAPE


@pytest.mark.parametrize("sampling", ["exact", "reference"])
def test_runtime_warps_as_the_network_does(tmp_path, sampling, to_onnx):
    """The field that the runtime makes of the displacement gives the graph's own `warped`."""
    weights = write_weights(tmp_path / "w.safetensors", sampling=sampling)
    assert to_onnx.main(["--weights", str(weights), "--out-dir", str(tmp_path / "b")]) == 0
    bundle = load_bundle(tmp_path / "b")
    generator = torch.Generator().manual_seed(3)
    moving, fixed = torch.rand(2, 1, 1, *SHAPE, generator=generator)
    displacement = OnnxRuntimeBackend(bundle.verified_path(bundle.network().file), 1).run(
        moving[0, 0].numpy(), fixed[0, 0].numpy()
    )
    network, _ = load_weights(weights)
    with torch.inference_mode():
        expected = RegistrationGraph(network)(moving, fixed)[1][0, 0].numpy()
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    grid = Grid(SHAPE, affine)
    field = field_from_network(displacement, grid, bundle.sampling)
    warped = warp_volume(Volume(moving[0, 0].numpy(), grid), field).data
    inside = (slice(6, -6),) * 3  # at the border the two treat "outside" differently
    np.testing.assert_allclose(warped[inside], expected[inside], atol=1e-3)


def test_existing_bundle_is_replaced_only_with_force(
    weights, instant_trace, tmp_path, to_onnx, capsys
):
    out = tmp_path / "bundle"
    options = ["--weights", str(weights), "--out-dir", str(out)]
    assert to_onnx.main(options) == 0
    first = (out / "manifest.json").stat().st_mtime_ns
    assert to_onnx.main(options) == 1
    assert "pass --force to replace it" in capsys.readouterr().err
    assert to_onnx.main([*options, "--force"]) == 0
    assert (out / "manifest.json").stat().st_mtime_ns > first
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_failed_verification_leaves_the_old_bundle(
    weights, instant_trace, tmp_path, to_onnx, monkeypatch, capsys
):
    out = tmp_path / "bundle"
    options = ["--weights", str(weights), "--out-dir", str(out), "--force"]
    assert to_onnx.main(options) == 0
    before = {p.name: sha256_of(p) for p in out.iterdir()}
    monkeypatch.setattr(verify_module, "TOLERANCE_VOX", -1.0)
    assert to_onnx.main(options) == 1
    assert "voxel of PyTorch in 99.9 %" in capsys.readouterr().err
    assert {p.name: sha256_of(p) for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_wide_features_come_in_slabs_in_float32_and_not_in_half(
    weights, instant_trace, tmp_path, to_onnx, monkeypatch
):
    monkeypatch.setattr(bundle_module, "for_cpus", lambda model: for_cpus(model, 20_000))
    out = tmp_path / "bundle"
    options = ["--weights", str(weights), "--out-dir", str(out), "--precision", "fp32", "fp16"]
    assert to_onnx.main(options) == 0
    slabs = {
        path.name: sum(n.op_type == "Gelu" for n in onnx.load(path).graph.node)
        for path in out.glob("*.onnx")
    }
    assert slabs[NETWORK] > slabs["registration.fp16.onnx"] > 0


def test_float32_for_gpus_is_a_file_of_its_own(weights, instant_trace, tmp_path, to_onnx):
    out = tmp_path / "bundle"
    options = ["--weights", str(weights), "--out-dir", str(out), "--fp32-for-gpus"]
    assert to_onnx.main(options) == 0
    loaded = load_bundle(out)
    found = {(e.precision, e.device): e.file for e in loaded.networks}
    assert found == {("fp32", "cpu"): NETWORK, ("fp32", "gpu"): "registration.gpu.onnx"}
    assert loaded.network().file == NETWORK
    assert loaded.network("fp32", "gpu").file == "registration.gpu.onnx"
    measured = loaded.manifest["networks"][1]["verification"]
    assert measured["reference"].startswith("PyTorch")
    assert measured["max_difference_vox"] < 1e-3


def test_exporting_needs_no_package_for_images(weights, tmp_path):
    """On a machine with a GPU and what an export needs, and nothing of what reads volumes."""
    export = Path(__file__).parents[2] / "export"
    code = """
import sys

for name in ("SimpleITK", "nibabel", "isal"):
    sys.modules[name] = None  # as where it is not installed
sys.path.insert(0, sys.argv.pop(1))
import to_onnx
import paramorph_export.engine
sys.exit(to_onnx.main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, export, "--weights", weights, "--precision", "fp16"]
    command += ["--out-dir", tmp_path / "b", "--shape", "32", "32", "32"]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "b" / "registration.fp16.onnx").exists()


def test_folders_that_are_no_bundle_are_never_replaced(weights, tmp_path, to_onnx, capsys):
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    assert to_onnx.main(["--weights", str(weights), "--out-dir", str(tmp_path), "--force"]) == 1
    assert "expected a new folder or a bundle" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").exists()


def test_bad_input_is_one_sentence(weights, tmp_path, to_onnx, capsys):
    out = str(tmp_path / "b")
    assert to_onnx.main(["--weights", str(tmp_path / "no.safetensors"), "--out-dir", out]) == 1
    assert "expected a file of weights, found none" in capsys.readouterr().err
    options = ["--weights", str(weights), "--out-dir", out, "--shape", "32", "32", "50"]
    assert to_onnx.main(options) == 1
    error = capsys.readouterr().err
    assert "multiples of 32, got (32, 32, 50)" in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_exported_bundle_registers_files_from_the_command_line(bundle, tmp_path):
    """Volumes → `paramorph-rt infer` → files, with torch and onnx kept out of the process."""
    axes = np.meshgrid(*[np.arange(n) for n in (40, 44, 38)], indexing="ij")
    points = (np.stack(axes, -1) - [20, 22, 19]) / [14, 17, 13]
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    for name, shift in (("moving", 0.1), ("fixed", 0.0)):
        data = np.clip(1.2 - np.linalg.norm(points - shift, axis=-1), 0, 1).astype(np.float32)
        nib.save(nib.Nifti1Image(data, affine), tmp_path / f"{name}.nii.gz")
    code = (
        "import sys; from paramorph_rt.cli import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'onnx'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "infer", "--model", str(bundle), "--json"]
    command += ["--moving", str(tmp_path / "moving.nii.gz"), "--out-dir", str(tmp_path / "out")]
    command += ["--fixed", str(tmp_path / "fixed.nii.gz")]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["model"] == "tiny"
    assert (tmp_path / "out" / "warped.nii.gz").exists()


@pytest.mark.slow
def test_paper_size_gives_the_same_graph():
    """Width and volume size change the numbers, not the graph."""
    from paramorph import CONFIGS, ParaMorph

    torch.manual_seed(0)
    config = CONFIGS["paramorph-small"]  # the paper's window and depths
    model = onnx_from_network(ParaMorph(config), (160, 160, 96))
    # With the definition of GridSample3D in place of its node, as a runtime unfolds it.
    assert len(model.graph.node) - 1 + len(model.functions[0].node) <= 700
    assert "ScatterND" not in {node.op_type for node in model.graph.node}

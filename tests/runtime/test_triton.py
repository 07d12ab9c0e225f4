from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from paramorph_rt import Registration
from paramorph_rt.bundle import default_bundle_path, load_bundle
from paramorph_rt.cli import main
from paramorph_rt.errors import BundleError, OutputError
from paramorph_rt.images.volume import save_volume
from paramorph_rt.triton import write_repository

from .phantoms import (
    centred_grid,
    head,
    read_manifest,
    replace_file,
    smooth_displacement_vox,
    volume_of,
    write_bundle,
    write_manifest,
)

grpc = pytest.importorskip("grpc", reason="needs tritonclient[grpc]")
service = pytest.importorskip("tritonclient.grpc.service_pb2_grpc", reason="needs tritonclient")
messages = pytest.importorskip("tritonclient.grpc.service_pb2", reason="needs tritonclient")
schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient")
text_format = pytest.importorskip("google.protobuf.text_format", reason="needs protobuf")

NAME = "known-displacement-onnx-fp32"


@pytest.fixture
def bundle_folder(tmp_path):
    return write_bundle(tmp_path / "bundle", smooth_displacement_vox())


def add_engine(folder, flavour, version, capability, content: bytes, **entry) -> str:
    file = f"{flavour}-{version}-{capability}.engine"
    replace_file(folder, file, content)
    manifest = read_manifest(folder)
    manifest["engines"].append(
        {
            "file": file,
            "flavour": flavour,
            "version": version,
            "compute_capability": capability,
            "precision": "fp16",
            "shape": manifest["grid"]["shape"],
            **entry,
        }
    )
    write_manifest(folder, manifest)
    return file


def parsed(model_folder):
    """config.pbtxt by Triton's own schema, which refuses unknown fields and wrong types."""
    text = (model_folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, schema.ModelConfig())


def dims_of(values) -> dict[str, tuple[list[int], str]]:
    names = {onnx.TensorProto.FLOAT: "TYPE_FP32"}
    return {
        v.name: (
            [d.dim_value for d in v.type.tensor_type.shape.dim],
            names[v.type.tensor_type.elem_type],
        )
        for v in values
    }


def configured(tensors) -> dict[str, tuple[list[int], str]]:
    return {t.name: (list(t.dims), schema.DataType.Name(t.data_type)) for t in tensors}


def check_against_onnx(model_folder):
    config = parsed(model_folder)
    graph = onnx.load(model_folder / "1" / config.default_model_filename).graph
    assert configured(config.input) == dims_of(graph.input)
    assert configured(config.output) == dims_of(graph.output)
    assert config.max_batch_size == 0
    assert (config.name, config.backend) == (model_folder.name, "onnxruntime")
    check_warm_up(config)


def check_warm_up(config):
    """A request as Triton wants it of a model that takes no batches."""
    (warm_up,) = config.model_warmup
    assert (warm_up.batch_size, warm_up.count) == (1, 0)
    inputs = warm_up.inputs
    found = {n: (list(t.dims), schema.DataType.Name(t.data_type)) for n, t in inputs.items()}
    assert found == configured(config.input)
    assert all(tensor.random_data for tensor in inputs.values())


def test_a_model_of_features_alone_cannot_be_served(tmp_path, capsys):
    assert main(["triton", "hippocampus-small", "--out-dir", str(tmp_path / "repo")]) == 1
    assert "expected a registration network that Triton can serve" in capsys.readouterr().err
    assert not (tmp_path / "repo").exists()


def test_config_says_what_the_network_is(bundle_folder, tmp_path, capsys):
    assert main(["triton", str(bundle_folder), "--out-dir", str(tmp_path / "repo")]) == 0
    assert capsys.readouterr().out == f"wrote {tmp_path / 'repo' / NAME}\n"
    check_against_onnx(tmp_path / "repo" / NAME)
    model = tmp_path / "repo" / NAME / "1/model.onnx"
    assert model.read_bytes() == (bundle_folder / "registration.onnx").read_bytes()
    parameters = parsed(tmp_path / "repo" / NAME).parameters
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    assert parameters["paramorph_sha256:model.onnx"].string_value == digest


def test_config_of_the_shipped_model(tmp_path):
    try:
        bundle = load_bundle(default_bundle_path())
    except BundleError as err:
        pytest.skip(str(err))
    names = {model.name for model in write_repository(bundle, tmp_path)}
    assert f"{bundle.name}-onnx-fp32" in names
    for name in names:
        if "-onnx-" in name:
            check_against_onnx(tmp_path / name)


def test_engines_are_one_model_by_compute_capability(bundle_folder, tmp_path, capsys):
    add_engine(bundle_folder, "tensorrt", "10.14.1", "8.6", b"ampere")
    add_engine(bundle_folder, "tensorrt", "10.14.1", "8.9", b"ada")
    add_engine(bundle_folder, "tensorrt", "10.9.0", "8.6", b"older")
    skipped = add_engine(bundle_folder, "tensorrt-rtx", "1.7.1", "8.6", b"rtx")
    assert main(["triton", str(bundle_folder), "--out-dir", str(tmp_path / "repo")]) == 0
    assert f"{skipped}: left out, because Triton loads engines of" in capsys.readouterr().err
    new, old = (f"known-displacement-tensorrt-{v}-fp16" for v in ("10.14.1", "10.9.0"))
    folders = {path.name for path in (tmp_path / "repo").iterdir()}
    assert folders == {NAME, new, old}
    config = parsed(tmp_path / "repo" / new)
    assert config.backend == "tensorrt"
    assert [g.kind for g in config.instance_group] == [schema.ModelInstanceGroup.KIND_GPU]
    check_warm_up(config)
    contents = {
        capability: (tmp_path / "repo" / new / "1" / file).read_bytes()
        for capability, file in config.cc_model_filenames.items()
    }
    assert contents == {"8.6": b"ampere", "8.9": b"ada"}
    assert configured(config.input)["moving"] == ([1, 1, 20, 24, 16], "TYPE_FP32")
    assert configured(config.output)["displacement"] == ([1, 3, 20, 24, 16], "TYPE_FP32")
    assert "built by TensorRT 10.14.1" in (tmp_path / "repo" / new / "README.md").read_text(
        encoding="utf-8"
    )


def test_networks_of_other_shapes_and_precisions_have_names_of_their_own(bundle_folder, tmp_path):
    manifest = read_manifest(bundle_folder)
    for entry in ({"precision": "fp16"}, {"shape": [24, 24, 24]}):
        manifest["networks"].append(manifest["networks"][0] | entry)
    write_manifest(bundle_folder, manifest)
    names = {model.name for model in write_repository(load_bundle(bundle_folder), tmp_path / "r")}
    assert names == {NAME, "known-displacement-onnx-fp16", f"{NAME}-24x24x24"}


def test_what_triton_cannot_load_is_left_out(bundle_folder, tmp_path, capsys):
    """A model that fails to load ends a server of the default options."""
    replace_file(bundle_folder, "plugin.so", b"code")
    engine = add_engine(bundle_folder, "tensorrt", "10.14.1", "8.6", b"old", plugin="plugin.so")
    manifest = read_manifest(bundle_folder)
    network = manifest["networks"][0]
    replace_file(bundle_folder, "bf16.onnx", (bundle_folder / "registration.onnx").read_bytes())
    manifest = read_manifest(bundle_folder)
    manifest["networks"].append({**network, "file": "bf16.onnx", "precision": "bf16"})
    write_manifest(bundle_folder, manifest)
    assert main(["triton", str(bundle_folder), "--out-dir", str(tmp_path / "repo")]) == 0
    said = capsys.readouterr().err
    assert "bf16.onnx: left out, because ONNX Runtime has no kernels for some of its" in said
    assert f"{engine}: left out, because Triton opens plugin libraries without" in said
    assert [path.name for path in (tmp_path / "repo").iterdir()] == [NAME]
    config = parsed(tmp_path / "repo" / NAME)
    assert list(config.instance_group) == []  # float32 is served without a GPU, too
    readme = (tmp_path / "repo" / NAME / "README.md").read_text(encoding="utf-8")
    assert f"--model-control-mode=explicit --load-model={NAME}" in readme
    assert "--exit-on-error=false" in readme
    assert "LD_PRELOAD" not in readme


def test_float32_for_gpus_is_a_model_of_its_own(bundle_folder, tmp_path):
    manifest = read_manifest(bundle_folder)
    manifest["networks"].append(manifest["networks"][0] | {"device": "gpu"})
    write_manifest(bundle_folder, manifest)
    names = {model.name for model in write_repository(load_bundle(bundle_folder), tmp_path / "r")}
    assert names == {NAME, f"{NAME}-gpu"}
    (group,) = parsed(tmp_path / "r" / f"{NAME}-gpu").instance_group
    assert group.kind == schema.ModelInstanceGroup.KIND_GPU


def test_models_of_a_repository_stay_and_ours_need_force(bundle_folder, tmp_path):
    repository = tmp_path / "repo"
    (repository / "theirs").mkdir(parents=True)
    bundle = load_bundle(bundle_folder)
    write_repository(bundle, repository)
    (repository / NAME / "old").write_text("old", encoding="utf-8")
    with pytest.raises(OutputError, match=rf"expected no model .* got {NAME}; pass --force"):
        write_repository(bundle, repository)
    assert (repository / NAME / "old").exists()
    write_repository(bundle, repository, force=True)
    assert not (repository / NAME / "old").exists()
    assert {path.name for path in repository.iterdir()} == {"theirs", NAME}


def test_altered_file_leaves_nothing(bundle_folder, tmp_path):
    bundle = load_bundle(bundle_folder)
    content = bytearray((bundle_folder / "registration.onnx").read_bytes())
    content[-1] ^= 1
    (bundle_folder / "registration.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="the file was altered"):
        write_repository(bundle, tmp_path / "repo")
    assert not (tmp_path / "repo").exists()
    assert not list(tmp_path.glob(".paramorph*"))


def test_no_bundle_is_told_without_options_that_there_are_not(tmp_path, capsys):
    words = ["triton", str(tmp_path / "none"), "--out-dir", str(tmp_path / "repo")]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"paramorph-rt: .*none: expected a bundle .*, found none; .*\n", said)
    assert "--" not in said
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("name", ["../up", "a b", "", 'a"b'])
def test_name_that_triton_cannot_use(bundle_folder, tmp_path, name):
    write_manifest(bundle_folder, read_manifest(bundle_folder) | {"name": name})
    with pytest.raises(BundleError, match="expected a bundle's name of letters"):
        write_repository(load_bundle(bundle_folder), tmp_path / "repo")


class Server(service.GRPCInferenceServiceServicer):
    """Triton's protocol, answered from the repository by ONNX Runtime."""

    def __init__(self, repository) -> None:
        self._repository = repository

    def ModelInfer(self, request, context):
        folder = self._repository / request.model_name
        config = parsed(folder)
        session = ort.InferenceSession(folder / "1" / config.default_model_filename)
        feeds = {
            tensor.name: np.frombuffer(raw, np.float32).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        names = [output.name for output in request.outputs]
        answer = messages.ModelInferResponse(model_name=request.model_name)
        for name, result in zip(names, session.run(names, feeds), strict=True):
            answer.outputs.add(name=name, datatype="FP32", shape=result.shape)
            answer.raw_output_contents.append(result.tobytes())
        return answer


@pytest.fixture
def address(bundle_folder, tmp_path):
    write_repository(load_bundle(bundle_folder), tmp_path / "repo")
    server = grpc.server(ThreadPoolExecutor(1))
    service.add_GRPCInferenceServiceServicer_to_server(Server(tmp_path / "repo"), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(None)


def test_client_of_the_readme_registers(address, bundle_folder, tmp_path, monkeypatch):
    for name, orientation in (("moving", "LAS"), ("fixed", "RAS")):
        grid = centred_grid(orientation, (46, 52, 40))
        save_volume(tmp_path / f"{name}.nii.gz", volume_of(head, grid))
    readme = (tmp_path / "repo" / NAME / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = code.replace("localhost:8001", address).replace('"BUNDLE"', repr(str(bundle_folder)))
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    here = Registration(bundle_folder, 1, "onnxruntime")("moving.nii.gz", "fixed.nii.gz")
    served = nib.load(tmp_path / "OUT/warped.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_allclose(served, here.warped.data, atol=1e-4)

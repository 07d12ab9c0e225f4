"""Engines of a bundle, built by a faked library, and by the real one where it is installed."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

from paramorph_export import engine as engine_module
from paramorph_export.engine import add_engines
from paramorph_export.errors import ExportError
from paramorph_rt.backends.gpu import Gpu
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BundleError, MissingDependencyError
from schedule import schedule_of

from ..runtime.phantoms import read_manifest, replace_file, write_bundle, write_manifest

# What the child uses of either library; FAKE says how it behaves, SEEN what it was given.
FAKE = """
import json, os, time

__version__ = os.environ.get("FAKE_VERSION", "1.7.1.116")
float32 = "float32"
seen = {"plugins": [], "capabilities": [], "cleared": []}


class ILogger:
    class Severity:
        class _One:
            def __init__(self, name): self.name = name
        VERBOSE, INFO, ERROR = _One("VERBOSE"), _One("INFO"), _One("ERROR")


class ComputeCapability:
    SM86, SM89 = "8.6", "8.9"


class BuilderFlag:
    TF32 = "TF32"


class LayerType:
    GRID_SAMPLE, OTHER = "grid sample", "other"


class InterpolationMode:
    LINEAR, NEAREST = "LINEAR", "NEAREST"


class SampleMode:
    CLAMP, FILL = "CLAMP", "FILL"


class ILayer:
    def __init__(self, name, type): self.name, self.type = name, type


class IGridSampleLayer(ILayer):
    interpolation_mode = os.environ.get("FAKE_INTERPOLATION", "LINEAR")
    sample_mode = os.environ.get("FAKE_SAMPLE_MODE", "CLAMP")
    align_corners = os.environ.get("FAKE_CORNERS", "1") == "1"


class NetworkDefinitionCreationFlag:
    if "FAKE_FLAGS" in os.environ:
        STRONGLY_TYPED = 1


class Tensor:
    def __init__(self, name): self.name, self.dtype = name, os.environ.get("FAKE_TYPE", float32)


class Network:
    num_inputs = num_outputs = num_layers = 2
    def get_layer(self, i): return ILayer(f"node_{i}", ("other", "grid sample")[i])
    def get_input(self, i): return Tensor(("moving", "fixed")[i])
    def get_output(self, i): return Tensor(("displacement", "warped")[i])


class Config:
    def clear_flag(self, flag): seen["cleared"].append(flag)
    def set_compute_capability(self, capability, index): seen["capabilities"].append(capability)


class Builder:
    def __init__(self, logger): self.logger = logger
    def create_builder_config(self):
        self.config = Config()
        return self.config
    def create_network(self, flags):
        seen["flags"] = flags
        return Network()
    def build_serialized_network(self, network, config):
        how = os.environ.get("FAKE")
        if how == "abort": os.abort()
        if "FAKE_PID" in os.environ:
            with open(os.environ["FAKE_PID"], "w") as f: f.write(str(os.getpid()))
        if how == "hang": time.sleep(600)
        if how == "refuse":
            self.logger.log(ILogger.Severity.ERROR, "kernel missing.")
            return None
        self.logger.log(ILogger.Severity.VERBOSE, "Total Activation Memory: 4096 bytes")
        self.logger.log(ILogger.Severity.INFO, "Total Weights Memory: 512 bytes")
        seen["aux_streams"] = config.max_aux_streams
        if "SEEN" in os.environ:
            with open(os.environ["SEEN"], "w") as f: json.dump(seen, f)
        return os.environ.get("FAKE_ENGINE", "an engine").encode()


class Registry:
    def load_library(self, path):
        if os.path.getsize(path) == 0: return None
        seen["plugins"].append(path)
        return self
    def get_creator(self, type, version, namespace): return self


def get_plugin_registry(): return Registry()


class OnnxParser:
    num_errors = 1
    def __init__(self, network, logger): pass
    def get_error(self, i): return "no such operator"
    def parse(self, content):
        import onnx
        seen["functions"] = len(onnx.load_from_string(content).functions)
        return os.environ.get("FAKE") != "unparsed"
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A bundle of a fp32 network for GPUs."""
    return for_gpus(write_bundle(tmp_path / "bundle", np.zeros((3, 20, 24, 16), np.float32)))


def for_gpus(folder: Path) -> Path:
    """The bundle, as if its network had been rewritten for GPUs."""
    manifest = read_manifest(folder)
    manifest["networks"][0]["device"] = "gpu"
    write_manifest(folder, manifest)
    return folder


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """A folder of both libraries, for this process and the child."""
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("tensorrt_rtx", "tensorrt"):
        (modules / f"{name}.py").write_text(FAKE, encoding="utf-8")
    monkeypatch.syspath_prepend(modules)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    monkeypatch.setattr(engine_module.tempfile, "tempdir", str(tmp_path / "logs"))
    (tmp_path / "logs").mkdir()
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def build(folder, *, precision="fp32", **options):
    return add_engines(folder, options.pop("targets", ["rtx3080"]), precision=precision, **options)


def test_an_engine_joins_the_bundle(folder, fake):
    before = contents(folder)
    (entry,) = build(folder)
    bundle = load_bundle(folder)
    (engine,) = bundle.engines
    assert engine.file == entry["file"]
    assert (engine.flavour, engine.version) == ("tensorrt-rtx", "1.7.1.116")
    assert (engine.compute_capability, engine.precision) == ("8.6", "fp32")
    assert bundle.verified_path(engine.file).read_bytes() == b"an engine"
    assert (entry["device_memory_bytes"], entry["weights_bytes"]) == (4096, 512)
    assert entry["network_sha256"] == bundle.manifest["files"]["registration.onnx"]["sha256"]
    log = bundle.verified_path(entry["log"]).read_text(encoding="utf-8")
    assert "INFO Total Weights Memory: 512 bytes" in log
    after = contents(folder)
    assert set(after) - set(before) == {entry["file"], entry["log"]}
    assert after["registration.onnx"] == before["registration.onnx"]
    seen = json.loads((fake / "seen.json").read_text(encoding="utf-8"))
    assert (seen["capabilities"], seen["cleared"], entry["tf32"]) == (["8.6"], ["TF32"], False)
    assert seen["aux_streams"] == 0


def test_one_engine_for_all_cards(folder, fake):
    (entry,) = build(folder, targets=["portable"])
    assert entry["compute_capability"] == "portable"
    assert json.loads((fake / "seen.json").read_text(encoding="utf-8"))["capabilities"] == []
    build(folder, targets=["sm86"])
    assert [e.compute_capability for e in load_bundle(folder).engines] == ["portable", "8.6"]


def test_files_that_are_not_the_bundles_are_never_deleted(folder, fake, monkeypatch):
    """Whatever the entry of an engine that is replaced names."""
    build(folder)
    victim = folder.parent / "victim.txt"
    victim.write_text("years of work", encoding="utf-8")
    for log in ("../victim.txt", str(victim), None):
        manifest = read_manifest(folder)
        old = manifest["engines"][0]
        del old["log"]
        if log is not None:
            old["log"] = log
        write_manifest(folder, manifest)
        monkeypatch.setenv("FAKE_ENGINE", f"after {log}")
        build(folder)
        assert victim.exists()
        assert not (folder / old["file"]).exists()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("FAKE_INTERPOLATION", "NEAREST"), ("FAKE_SAMPLE_MODE", "FILL"), ("FAKE_CORNERS", "0")],
)
def test_a_parser_that_misreads_sampling_is_refused(folder, fake, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ExportError, match=r"node_1 samples with .* misreads GridSample; install"):
        build(folder)
    assert load_bundle(folder).engines == ()


def test_build_ends_with_the_program_that_wanted_it(folder, fake, monkeypatch, tmp_path):
    """Killed, it cannot end the build itself, which has a session of its own."""
    code = "import sys; from paramorph_export.engine import add_engines; "
    code += "add_engines(sys.argv[1], ['sm86'], precision='fp32')"
    environment = {**os.environ, "FAKE": "hang", "FAKE_PID": str(tmp_path / "pid")}
    environment["PYTHONPATH"] = os.pathsep.join([str(fake / "modules"), *sys.path])
    parent = subprocess.Popen([sys.executable, "-c", code, folder], env=environment)
    pid = wait_for(lambda: int((tmp_path / "pid").read_text() or 0))
    parent.kill()
    parent.wait()
    state = lambda: Path(f"/proc/{pid}/stat").read_text().split()[2]  # noqa: E731
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or state() == "Z")


def wait_for(condition):
    """What it gives, as soon as that is true."""
    for _ in range(200):
        with suppress(OSError, ValueError):
            if found := condition():
                return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


def test_engines_of_several_targets_stand_side_by_side_and_a_rebuilt_one_replaces(
    folder, fake, monkeypatch
):
    build(folder, targets=["sm86", "rtx3080", "sm89"])
    first = {e.compute_capability: e.file for e in load_bundle(folder).engines}
    assert set(first) == {"8.6", "8.9"}
    monkeypatch.setenv("FAKE_ENGINE", "another engine")
    build(folder)
    bundle = load_bundle(folder)
    second = {e.compute_capability: e.file for e in bundle.engines}
    assert second["8.9"] == first["8.9"]
    assert second["8.6"] != first["8.6"]
    assert bundle.verified_path(second["8.6"]).read_bytes() == b"another engine"
    assert set(bundle.manifest["files"]) == set(contents(folder)) - {"manifest.json"}


@pytest.mark.parametrize(
    ("how", "limit_s", "match"),
    [
        ("abort", 60, r"got a crash of the library \(SIGABRT\); read "),
        ("hang", 2, r"got none after 2 s; read "),
        ("refuse", 60, r"got a refusal of the library: kernel missing; read "),
        ("unparsed", 60, r"a refusal of the library: no such operator; read "),
    ],
)
def test_a_failed_build_leaves_the_bundle_and_a_log(folder, fake, monkeypatch, how, limit_s, match):
    before = contents(folder)
    monkeypatch.setenv("FAKE", how)
    with pytest.raises(ExportError, match=match):
        build(folder, time_limit_s=limit_s)
    assert contents(folder) == before
    assert not list(folder.glob(".engines-*"))
    assert len(list((fake / "logs").glob("tensorrt-rtx-sm86-fp32-*.log"))) == 1


def test_another_type_of_input_is_refused(folder, fake, monkeypatch):
    monkeypatch.setenv("FAKE_TYPE", "float16")
    with pytest.raises(ExportError, match="are not the float32 volumes of a bundle's network"):
        build(folder)


def test_what_cannot_be_built_is_said_before_anything_is(folder, fake):
    with pytest.raises(BundleError, match="export the bundle with --precision fp32 fp16, or ch"):
        build(folder, precision="fp16")
    manifest = read_manifest(folder)
    del manifest["networks"][0]["device"]  # for CPUs, as older bundles hold it
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"fp32 for GPUs, got none; export .* --fp32-for-gpus"):
        build(folder)
    for_gpus(folder)
    with pytest.raises(ExportError, match=r"--target: expected rtx3080, sm75, .* got sm90; choose"):
        build(folder, targets=["sm90"])
    with pytest.raises(ExportError, match="tensorrt: expected a GPU to build on, got none"):
        build(folder, flavour="tensorrt")


def test_a_library_that_is_not_installed(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"auto: .* tensorrt_rtx, found none; run `py"):
        build(folder)
    with pytest.raises(MissingDependencyError, match=r"tensorrt: expected the package tensorrt,"):
        build(folder, flavour="tensorrt")


@pytest.fixture
def a_gpu(monkeypatch):
    monkeypatch.setattr(engine_module, "find_gpu", lambda: Gpu("a card", "8.6", 10**10, "13.0"))


def test_tensorrt_builds_for_the_gpu_that_is_here(folder, fake, monkeypatch):
    for capability in ("8.6", "8.7", "10.3", "12.1"):  # whichever that is
        here = Gpu("a card", capability, 10**10, "13.0")
        monkeypatch.setattr(engine_module, "find_gpu", lambda here=here: here)
        monkeypatch.setenv("FAKE_VERSION", "11.2.0.1")
        target = f"sm{capability.replace('.', '')}"
        (entry,) = build(folder, flavour="tensorrt", targets=[target])
        assert entry["compute_capability"] == capability
        with pytest.raises(
            ExportError, match=r"expected a GPU of compute capability 8\.9 for sm89"
        ):
            build(folder, flavour="tensorrt", targets=["sm89"])
    for name in ("portable", "8.6", "sm8"):
        with pytest.raises(ExportError, match="--target: expected rtx3080 or a compute capability"):
            build(folder, flavour="tensorrt", targets=[name])


def test_an_old_tensorrt_gets_the_plugin_as_a_file_of_the_bundle(
    folder, fake, a_gpu, monkeypatch, bundle
):
    monkeypatch.setenv("FAKE_VERSION", "10.14.1.48")
    monkeypatch.setenv("FAKE_FLAGS", "1")
    with pytest.raises(ExportError, match=r"TensorRT 10\.14\.1\.48 has no GridSample of volumes"):
        build(folder, flavour="tensorrt")
    library = fake / "libplugin.so"
    library.write_bytes(b"")
    with pytest.raises(ExportError, match=r"libplugin.so is no library of GridSample3D for 10\.14"):
        build(folder, flavour="tensorrt", plugin=library)
    library.write_bytes(b"code")
    copy = for_gpus(shutil.copytree(bundle, fake / "copy"))
    (entry,) = build(copy, flavour="tensorrt", plugin=library)
    seen = json.loads((fake / "seen.json").read_text(encoding="utf-8"))
    assert seen["plugins"] == [str(library)]
    assert seen["functions"] == 0  # its definition would hide the plugin
    assert seen["flags"] == 1 << 1  # strongly typed
    assert (entry["flavour"], entry["version"]) == ("tensorrt", "10.14.1.48")
    loaded = load_bundle(copy)
    (engine,) = loaded.engines
    assert engine.plugin == f"engines/libplugin-{hashlib.sha256(b'code').hexdigest()[:8]}.so"
    assert loaded.verified_bytes(engine.plugin) == b"code"
    monkeypatch.setenv("FAKE_ENGINE", "another engine")
    build(copy, flavour="tensorrt", plugin=library)
    assert load_bundle(copy).verified_bytes(engine.plugin) == b"code"  # theirs in common


def test_a_new_tensorrt_samples_itself(fake, a_gpu, monkeypatch, bundle):
    monkeypatch.setenv("FAKE_VERSION", "11.2.0.1")
    (entry,) = build(for_gpus(shutil.copytree(bundle, fake / "copy")), flavour="tensorrt")
    assert "plugin" not in entry
    seen = json.loads((fake / "seen.json").read_text(encoding="utf-8"))
    assert (seen["plugins"], seen["functions"], seen["flags"]) == ([], 1, 0)


def test_the_real_library_builds_without_a_gpu(bundle, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, of the extra tensorrt-rtx")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "export")
    import build_engine

    copy = for_gpus(shutil.copytree(bundle, tmp_path / "bundle"))
    assert build_engine.main(["--bundle", str(copy), "--precision", "fp32"]) == 0
    assert "compute capability 8.6, fp32" in capsys.readouterr().out
    loaded = load_bundle(copy)
    (entry,) = loaded.manifest["engines"]
    assert loaded.verified_path(entry["file"]).stat().st_size > 100_000
    assert entry["device_memory_bytes"] > 0
    engine = loaded.verified_bytes(entry["file"])
    assert not re.findall(rb"\n\s*wait=\{", engine)  # all in one stream
    schedule = schedule_of(engine)
    assert any(schedule.flop_of(launch) > 0 for launch in schedule.launches)
    assert all(schedule.bytes_of(launch) > 0 for launch in schedule.launches if launch.outputs)


def test_the_real_parser_is_asked_how_it_samples(bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, of the extra tensorrt-rtx")
    copy = for_gpus(shutil.copytree(bundle, tmp_path / "bundle"))
    model = onnx.load(copy / "registration.onnx")
    (node,) = (node for node in model.graph.node if node.op_type == "GridSample3D")
    del node.attribute[:]
    node.attribute.append(onnx.helper.make_attribute("interpolation", "nearest"))
    replace_file(copy, "registration.onnx", model.SerializeToString())
    with pytest.raises(ExportError, match=r"samples with InterpolationMode\.NEAREST, SampleMode"):
        add_engines(copy, ["sm86"], precision="fp32")

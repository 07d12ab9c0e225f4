"""Engines of a bundle, built by a faked library, and by the real one where it is installed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paramorph_export import engine as engine_module
from paramorph_export.engine import add_engines
from paramorph_export.errors import ExportError
from paramorph_rt.backends.gpu import Gpu
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BundleError, MissingDependencyError

from ..runtime.phantoms import write_bundle

# What the child uses of either library; FAKE says how it behaves, SEEN what it was given.
FAKE = """
import json, os, time

__version__ = os.environ.get("FAKE_VERSION", "1.7.1.116")
float32 = "float32"
seen = {"plugins": [], "capabilities": []}


class ILogger:
    class Severity:
        class _One:
            def __init__(self, name): self.name = name
        VERBOSE, INFO, ERROR = _One("VERBOSE"), _One("INFO"), _One("ERROR")


class ComputeCapability:
    SM86, SM89 = "8.6", "8.9"


class NetworkDefinitionCreationFlag:
    if "FAKE_FLAGS" in os.environ:
        STRONGLY_TYPED = 1


class Tensor:
    def __init__(self, name): self.name, self.dtype = name, os.environ.get("FAKE_TYPE", float32)


class Network:
    num_inputs = num_outputs = 2
    def get_input(self, i): return Tensor(("moving", "fixed")[i])
    def get_output(self, i): return Tensor(("displacement", "warped")[i])


class Config:
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
        if how == "hang": time.sleep(600)
        if how == "refuse":
            self.logger.log(ILogger.Severity.ERROR, "kernel missing.")
            return None
        self.logger.log(ILogger.Severity.VERBOSE, "Total Activation Memory: 4096 bytes")
        self.logger.log(ILogger.Severity.INFO, "Total Weights Memory: 512 bytes")
        seen["serialized_plugins"] = getattr(config, "plugins_to_serialize", [])
        if "SEEN" in os.environ:
            with open(os.environ["SEEN"], "w") as f: json.dump(seen, f)
        return os.environ.get("FAKE_ENGINE", "an engine").encode()


class Registry:
    def load_library(self, path): seen["plugins"].append(path)


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
    """A bundle of a fp32 network."""
    return write_bundle(tmp_path / "bundle", np.zeros((3, 20, 24, 16), np.float32))


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
    assert json.loads((fake / "seen.json").read_text(encoding="utf-8"))["capabilities"] == ["8.6"]


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
    with pytest.raises(BundleError, match="export the bundle with --precision fp16"):
        build(folder, precision="fp16")
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


def test_tensorrt_builds_for_the_gpu_that_is_here(folder, fake, a_gpu):
    with pytest.raises(ExportError, match=r"expected a GPU of compute capability 8\.9 for sm89"):
        build(folder, flavour="tensorrt", targets=["sm89"])


def test_an_old_tensorrt_takes_the_plugin_into_the_engine(folder, fake, a_gpu, monkeypatch, bundle):
    monkeypatch.setenv("FAKE_VERSION", "10.14.1.48")
    monkeypatch.setenv("FAKE_FLAGS", "1")
    with pytest.raises(ExportError, match=r"TensorRT 10\.14\.1\.48 has no GridSample of volumes"):
        build(folder, flavour="tensorrt")
    library = fake / "libplugin.so"
    library.write_bytes(b"")
    copy = shutil.copytree(bundle, fake / "copy")
    (entry,) = build(copy, flavour="tensorrt", plugin=library)
    seen = json.loads((fake / "seen.json").read_text(encoding="utf-8"))
    assert seen["plugins"] == seen["serialized_plugins"] == [str(library)]
    assert seen["functions"] == 0  # its definition would hide the plugin
    assert seen["flags"] == 1 << 1  # strongly typed
    assert (entry["flavour"], entry["version"]) == ("tensorrt", "10.14.1.48")
    assert [engine.has_plugin for engine in load_bundle(copy).engines] == [True]


def test_a_new_tensorrt_samples_itself(fake, a_gpu, monkeypatch, bundle):
    monkeypatch.setenv("FAKE_VERSION", "11.2.0.1")
    (entry,) = build(shutil.copytree(bundle, fake / "copy"), flavour="tensorrt")
    assert entry["has_plugin"] is False
    seen = json.loads((fake / "seen.json").read_text(encoding="utf-8"))
    assert (seen["plugins"], seen["functions"], seen["flags"]) == ([], 1, 0)


def test_the_real_library_builds_without_a_gpu(bundle, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, of the extra tensorrt-rtx")
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "export")
    import build_engine

    copy = shutil.copytree(bundle, tmp_path / "bundle")
    assert build_engine.main(["--bundle", str(copy), "--precision", "fp32"]) == 0
    assert "compute capability 8.6, fp32" in capsys.readouterr().out
    loaded = load_bundle(copy)
    (entry,) = loaded.manifest["engines"]
    assert loaded.verified_path(entry["file"]).stat().st_size > 100_000
    assert entry["device_memory_bytes"] > 0

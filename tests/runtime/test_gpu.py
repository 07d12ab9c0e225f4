"""Engines on a fake GPU: its driver is C, the bindings are real or PyCUDA's signatures."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import paramorph_rt
from paramorph_rt.backends.device_memory import open_device
from paramorph_rt.backends.engine_files import engine_of_version, engines_for
from paramorph_rt.backends.runtime_cache import RuntimeCacheFile
from paramorph_rt.backends.tensorrt import EngineBackend, import_library
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BackendError, BundleError, MissingDependencyError

from .phantoms import NETWORK_SHAPE, read_manifest, replace_file, write_bundle, write_manifest

FAKES = Path(__file__).parent / "fake_gpu"
VERSION = "1.7.1.116"
ENGINE = "registration.sm86.fp16.engine"


@pytest.fixture(scope="session")
def driver(tmp_path_factory) -> Path:
    """The folder of a libcuda without a GPU."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the fake driver")
    folder = tmp_path_factory.mktemp("driver")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, "-o", folder / "libcuda.so.1", FAKES / "driver.c"], check=True)
    return folder


@pytest.fixture(params=["cuda-python", "pycuda"])
def bindings(request) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path) -> Path:
    """A bundle with an engine for the fake GPU."""
    return add_engine(write_bundle(tmp_path / "bundle", np.zeros((3, *NETWORK_SHAPE), np.float32)))


@pytest.fixture
def on_gpu(driver, tmp_path):
    """Run scenarios in one process that finds the fake driver and library; what they log."""

    def run(
        *scenarios: str, folder: Path, bindings: str = "cuda-python", **environment: str
    ) -> str:
        pytest.importorskip("cuda.bindings", reason="needs cuda-bindings, of tensorrt-rtx")
        path = [Path(paramorph_rt.__file__).parents[1], FAKES]
        path += [FAKES / "with_pycuda"] if bindings != "cuda-python" else []
        if bindings == "pycuda":
            environment = {"PARAMORPH_CUDA": "pycuda", **environment}
        done = subprocess.run(
            [sys.executable, FAKES / "scenarios.py", *scenarios, folder],
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(driver),
                "PYTHONPATH": os.pathsep.join(map(str, path)),
                "XDG_CACHE_HOME": str(tmp_path / "cache"),
                **environment,
            },
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    return run


def add_engine(folder: Path, file: str = ENGINE, **changes) -> Path:
    """Add an engine that the fake library loads."""
    tensors = {n: [1, c, *NETWORK_SHAPE] for n, c in (("moving", 1), ("fixed", 1))}
    tensors |= {n: [1, c, *NETWORK_SHAPE] for n, c in (("displacement", 3), ("warped", 1))}
    plan = {"tensors": tensors, **changes.pop("plan", {})}
    entry = {
        "file": file,
        "flavour": "tensorrt-rtx",
        "version": VERSION,
        "compute_capability": "8.6",
        "precision": "fp16",
        "shape": list(NETWORK_SHAPE),
        **changes,
    }
    manifest = read_manifest(folder)
    manifest["engines"].append(entry)
    write_manifest(folder, manifest)
    replace_file(folder, file, json.dumps(plan).encode())
    return folder


def test_with_either_binding(on_gpu, folder, bindings):
    on_gpu(
        *("pairs_follow_one_another", "callers_memory_and_stream", "threads_take_turns"),
        *("memory_is_given_back", "engine_of_another_thread", "closed_engine"),
        *("graph_is_captured_once", "default_stream_of_the_callers"),
        folder=folder,
        bindings=bindings,
    )


def test_with_one(on_gpu, folder):
    only = write_bundle(folder.with_name("displacement_only"), np.zeros((3, *NETWORK_SHAPE)))
    tensors = {"moving": 1, "fixed": 1, "displacement": 3}
    tensors = {name: [1, channels, *NETWORK_SHAPE] for name, channels in tensors.items()}
    add_engine(only, plan={"tensors": tensors})
    on_gpu(
        *("gpu_is_described", "other_shape_is_refused", "address_that_the_gpu_has_not"),
        *("kernels_of_another_version_are_replaced", "engine_without_a_warped_volume"),
        folder=folder,
    )


def test_engine_that_needs_its_plugin(on_gpu, tmp_path):
    folder = write_bundle(tmp_path / "bundle", np.zeros((3, *NETWORK_SHAPE), np.float32))
    replace_file(folder, "plugin.so", b"GridSample3D")
    add_engine(folder, plugin="plugin.so", plan={"plugin": "GridSample3D"})
    on_gpu("plugin_is_loaded_once", folder=folder)


def test_plugin_that_was_altered_is_never_loaded(folder):
    replace_file(folder, "plugin.so", b"GridSample3D")
    manifest = read_manifest(folder)
    manifest["engines"][0]["plugin"] = "plugin.so"
    write_manifest(folder, manifest)
    (folder / "plugin.so").write_bytes(b"GridSample3E")
    bundle = load_bundle(folder)
    library = SimpleNamespace(ILogger=_Logger, Runtime=lambda logger: None)
    device = SimpleNamespace(
        active=nullcontext, event=lambda: None, stream=lambda: SimpleNamespace(synchronize=list)
    )
    with pytest.raises(BundleError, match=r"plugin.so: expected SHA-256 .* the file was altered"):
        EngineBackend(bundle, bundle.engines[0], library, device)
    manifest["engines"][0]["plugin"] = "another.so"
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"without \['another.so'\]"):
        load_bundle(folder)


def test_binding_is_the_users_choice(on_gpu, folder):
    for chosen in ("pycuda", "cuda-python"):
        on_gpu(f"library_is_{chosen.replace('-', '_')}", folder=folder, bindings="pycuda",
               PARAMORPH_CUDA=chosen)  # fmt: skip
    on_gpu("library_is_cuda_python", folder=folder, bindings="both")


def test_driver_without_a_gpu(on_gpu, folder):
    message = "GPU: expected one of NVIDIA, found its driver alone; check CUDA_VISIBLE_DEVICES"
    (folder / "expected.json").write_text(json.dumps({".": message}), encoding="utf-8")
    on_gpu("each_is_refused_at_load", folder=folder, FAKE_GPUS="0")


def test_kernels_are_kept_between_processes(on_gpu, folder):
    for _ in range(2):
        on_gpu("kernels_are_kept", folder=folder)


def test_memory_that_the_gpu_has_not(on_gpu, folder, bindings):
    on_gpu("too_little_memory", folder=folder, bindings=bindings, FAKE_GPU_BYTES="1000")


BUILD = "build it: python export/build_engine.py --bundle "
REFUSED = {
    "other version": ({"version": "1.6.0.33"}, f"for version {VERSION}, got 1.6.0.33; {BUILD}"),
    "other GPU": (
        {"compute_capability": "8.9"},
        f"for compute capability 8.6, got 8.9; {BUILD}",
    ),
    "other precision": ({"precision": "fp32"}, f"for precision fp16, got fp32; {BUILD}"),
    "other shape": (
        {"shape": [32, 32, 32]},
        f"for shape {NETWORK_SHAPE}, got (32, 32, 32); {BUILD}",
    ),
    "other flavour": ({"flavour": "tensorrt"}, f"flavour tensorrt-rtx, got tensorrt; {BUILD}"),
    "no engine": ({}, f"{ENGINE}: expected an engine that tensorrt_rtx {VERSION} loads, got Err"),
    "plugin that the manifest does not tell of": (
        {"plan": {"plugin": "GridSample3D"}},
        f"{ENGINE}: expected an engine that tensorrt_rtx {VERSION} loads, got Error Code 4: Plugin",
    ),
    "not finite": ({"plan": {"not_a_number": True}}, "expected finite displacements"),
    "half tensors": ({"plan": {"type": "HALF"}}, "expected float32 tensors moving, fixed"),
    "too large": ({"plan": {"too_large": True}}, "expected memory for its activations"),
    "launch that fails": ({"plan": {"fails": True}}, "expected a launch, got Error Code 1: no k"),
}


def test_engines_that_are_refused(on_gpu, tmp_path):
    expected = {name: message for name, (_, message) in REFUSED.items()}
    (tmp_path / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
    for name, (changes, _) in REFUSED.items():
        folder = write_bundle(tmp_path / name, np.zeros((3, *NETWORK_SHAPE), np.float32))
        add_engine(folder, **changes)
        if name == "no engine":
            replace_file(folder, ENGINE, b"nothing")
    on_gpu("each_is_refused_at_load", folder=tmp_path)


def test_fake_library_has_the_signatures_of_the_real_one():
    library = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
    compared = 0
    for kind in ast.parse((FAKES / "tensorrt_rtx.py").read_text(encoding="utf-8")).body:
        if not isinstance(kind, ast.ClassDef):
            continue
        real = getattr(library, kind.name)
        for member in kind.body:
            if not isinstance(member, ast.FunctionDef) or member.name.startswith("_"):
                continue
            known = getattr(real, member.name).__doc__  # pybind11 writes "name(self: T, a: U) -> V"
            names = [argument.arg for argument in member.args.args[1:]]
            overloads = [
                re.findall(r"(\w+): ", line) for line in known.splitlines() if "->" in line
            ]
            if not member.decorator_list:  # a property has no signature
                assert ["self", *names] in overloads, (kind.name, member.name, known)
                compared += 1
    assert compared >= 12
    assert set(library.CudaGraphStrategy.__members__) == {"DISABLED", "WHOLE_GRAPH_CAPTURE"}
    assert isinstance(library.IRuntimeConfig.cuda_graph_strategy, property)
    assert (library.float32, library.ILogger.Severity.ERROR.name) == (
        library.DataType.FLOAT,
        "ERROR",
    )


def test_real_library_says_why_it_refuses_a_file(folder, monkeypatch):
    """Without a GPU; only the memory is somebody else's."""
    library = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13")
    assert import_library("tensorrt-rtx") is library
    bundle = load_bundle(folder)
    device = SimpleNamespace(
        active=nullcontext, event=lambda: None, stream=lambda: SimpleNamespace(synchronize=list)
    )
    message = rf"{ENGINE}: expected an engine that tensorrt_rtx .* loads, got .*; build the engine"
    with pytest.raises(BackendError, match=message) as caught:
        EngineBackend(bundle, bundle.engines[0], library, device)
    assert "\n" not in str(caught.value)


def test_altered_engine_is_never_loaded(folder):
    (folder / ENGINE).write_bytes((folder / ENGINE).read_bytes().replace(b"moving", b"moVing"))
    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match="the file was altered"):
        EngineBackend(bundle, bundle.engines[0], SimpleNamespace(ILogger=_Logger), None)


class _Logger:
    class Severity:
        pass


def test_kernels_are_kept_for_their_engine_where_nobody_else_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    engine = tmp_path / "bundle" / "e.engine"
    kept = RuntimeCacheFile(engine, "ab" * 32)
    assert kept.read() is None
    kept.write(b"kernels")
    assert kept.read() == b"kernels"
    assert RuntimeCacheFile(engine, "cd" * 32).read() is None  # another engine
    (file,) = (tmp_path / "cache/paramorph-rt/kernels").iterdir()
    assert file.name == "e.engine.abababababab.cache"
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert not engine.parent.exists()


def test_kernels_that_others_could_have_written_are_not_used(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = RuntimeCacheFile(tmp_path / "e.engine", "ab" * 32)
    kept.write(b"kernels")
    (tmp_path / "paramorph-rt/kernels").chmod(0o770)
    assert kept.read() is None
    kept.write(b"others")
    assert "can be written by others; chmod 700, or remove it; the next run" in caplog.text


def test_kernels_that_cannot_be_kept_are_no_error(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    kept = RuntimeCacheFile(tmp_path / "gone" / "e.engine", "ab" * 32)
    kept.write(b"kernels")
    assert "the next run compiles again" in caplog.text
    assert kept.read() is None


ENGINES = {  # file: version and compute capability, in the order of the manifest
    "portable.engine": ("10.14.1.48.post1", "portable"),
    "newer.engine": ("11.2.0.9", "8.6"),
    "same.engine": ("10.14.1.48.post1", "8.6"),
    "ada.engine": ("10.14.1.48.post1", "8.9"),
}


@pytest.mark.parametrize(
    ("capability", "version", "file"),
    [
        ("8.6", "10.14.1.48.post1", "same.engine"),
        ("8.6", "10.14.1.48", "same.engine"),
        ("8.6", "10.14.1", "same.engine"),  # as an older Python package tells it
        ("8.9", "10.14.1.48", "ada.engine"),
        ("12.0", "10.14.1.48", "portable.engine"),
        ("9.0", "10.14.1.48", "portable.engine"),
        ("8.6", "11.2.0.9", "newer.engine"),
        ("8.6", "11.2.0.90", None),
        ("8.6", "10.14.2.48", None),
        ("7.5", "10.14.1.48", None),
    ],
)
def test_engine_is_chosen_by_card_and_numbers_of_the_version(folder, capability, version, file):
    manifest = read_manifest(folder)
    manifest["engines"] = []
    write_manifest(folder, manifest)
    for name, (built, target) in ENGINES.items():
        add_engine(folder, name, version=built, compute_capability=target)
    bundle = load_bundle(folder)

    def chosen() -> str:
        engines = engines_for(bundle, "tensorrt-rtx", "fp16", capability)
        return engine_of_version(engines, version, bundle).file

    if file is None:
        with pytest.raises(BackendError, match=r"build it: python export/build_engine\.py"):
            chosen()
    else:
        assert chosen() == file


def test_binding_that_is_none(monkeypatch):
    monkeypatch.setenv("PARAMORPH_CUDA", "cupy")
    with pytest.raises(BackendError, match="expected cuda-python or pycuda, got cupy; choose one"):
        open_device()


def test_neither_binding(monkeypatch):
    for name in ("pycuda", "pycuda.driver", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"expected cuda-python or PyCUDA .* pip"):
        open_device()

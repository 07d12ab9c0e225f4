from __future__ import annotations

import logging
import os
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from paramorph_rt import Registration
from paramorph_rt.backends import Way, choice, choose_backend, gpu
from paramorph_rt.bundle import Bundle, default_bundle_path, load_bundle
from paramorph_rt.errors import (
    BackendError,
    BundleError,
    MissingDependencyError,
    ParamorphError,
)

from .phantoms import NETWORK_SHAPE, replace_file, smooth_displacement_vox, write_bundle

ZEROS = np.zeros(NETWORK_SHAPE, np.float32)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """As on a machine without one; engines on a GPU are in test_gpu.py."""
    monkeypatch.setattr(gpu, "DRIVER", "libcuda-of-nobody.so.1")


@pytest.fixture
def a_gpu(monkeypatch):
    """As if the driver had found one."""
    found = gpu.Gpu("RTX 3080", "8.6", 10 * 2**30, "13.0")
    monkeypatch.setattr(gpu, "find_gpu", lambda: found)


@pytest.fixture(params=["openvino", "onnxruntime"])
def engine(request) -> str:
    if find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}, of the extra of that name")
    return request.param


@pytest.mark.skipif(
    not hasattr(ort.SessionOptions, "add_external_initializers_from_files_in_memory"),
    reason="needs ONNX Runtime 1.24, which takes weights from memory",
)
def test_onnx_runtime_loads_what_was_hashed(tmp_path, monkeypatch):
    folder = shutil.copytree(default_bundle_path(), tmp_path / "bundle")
    hashed = Bundle.verified_bytes

    def then_swapped(bundle: Bundle, file: str) -> bytes:
        content = hashed(bundle, file)
        (folder / file).write_bytes(b"another's")
        return content

    monkeypatch.setattr(Bundle, "verified_bytes", then_swapped)
    backend = choose_backend(load_bundle(folder), "onnxruntime", threads=1).at((96, 128, 96))
    assert (folder / "weights.safetensors").read_bytes() == b"another's"
    noise = np.random.default_rng(0).random((2, 96, 128, 96), np.float32)
    monkeypatch.undo()
    expected = choose_backend(load_bundle(default_bundle_path()), "onnxruntime", threads=1)
    np.testing.assert_array_equal(backend.run(*noise), expected.at((96, 128, 96)).run(*noise))


@pytest.mark.parametrize("threads", [None, 1])
def test_displacement_is_the_network_output(bundle_path, engine, threads):
    backend = choose_backend(load_bundle(bundle_path), engine, threads=threads)
    np.testing.assert_array_equal(backend.run(ZEROS, ZEROS), smooth_displacement_vox())
    assert (backend.name, backend.precision) == (f"{engine}-cpu", "fp32")


def test_closed_engine_runs_no_more(bundle_path, engine):
    backend = choose_backend(load_bundle(bundle_path), engine)
    inner = backend.at(NETWORK_SHAPE)
    with backend as entered:
        entered.run(ZEROS, ZEROS)
    backend.close()  # once more does nothing
    for closed in (backend, inner):
        with pytest.raises(BackendError, match=rf"{engine}-cpu: expected an open engine, got one"):
            closed.run(ZEROS, ZEROS)


def test_input_of_another_shape(bundle_path, engine):
    backend = choose_backend(load_bundle(bundle_path), engine)
    with pytest.raises(BackendError, match=r"of shape \(20, 24, 16\), got \(19, 24, 16\); prep"):
        backend.run(ZEROS[1:], ZEROS[1:])
    with pytest.raises(BackendError, match=r"registration.onnx: expected displacement for shape"):
        backend.run(ZEROS[1:], ZEROS)


def test_file_that_is_no_network(bundle_path, tmp_path, engine):
    folder = write_bundle(tmp_path / "bundle", smooth_displacement_vox())
    replace_file(folder, "registration.onnx", b"nothing")
    bundle = load_bundle(folder)
    with pytest.raises(
        BackendError, match=r"registration.onnx: expected a network that O"
    ) as caught:
        choose_backend(bundle, engine)
    assert "\n" not in str(caught.value)


def test_output_that_is_not_finite(tmp_path, engine):
    displacement_vox = smooth_displacement_vox()
    displacement_vox[1, 2, 3, 4] = np.nan
    bundle = load_bundle(write_bundle(tmp_path / "bundle", displacement_vox))
    with pytest.raises(BackendError, match="expected finite displacements"):
        choose_backend(bundle, engine).run(ZEROS, ZEROS)


def a_way(backend: str, precisions=("fp32",), by_default=("fp32",), **answers) -> Way:
    """Answers by precision: what `prepare` raises, what loading raises, or the loaded name."""

    def prepare(bundle, precision, threads):
        answer = answers[precision]
        if isinstance(answer, ParamorphError):
            raise answer

        def load():
            if isinstance(answer, list):
                raise answer[0]
            return SimpleNamespace(name=answer, precision=precision, threads=threads)

        return load

    return Way(backend, f"{backend}-way", precisions, by_default, prepare)


def test_auto_takes_the_first_that_works_and_tells_what_it_skipped(
    bundle_path, monkeypatch, caplog
):
    no_gpu = BackendError("GPU: expected one, found none")
    both = {"precisions": ("fp32", "fp16"), "by_default": ("fp16", "fp32")}
    ways = (
        a_way("first", fp16=no_gpu, fp32=no_gpu, **both),
        a_way("second", fp16=no_gpu, fp32=no_gpu, **both),
        a_way("third", fp16=[BackendError("third: does not start")], fp32=no_gpu, **both),
        a_way("fourth", fp16=BackendError("fourth: no fp16"), fp32="works", **both),
        a_way("fifth", fp32="works as well"),
    )
    monkeypatch.setattr(choice, "WAYS", ways)
    monkeypatch.setattr(choice, "BACKENDS", tuple(way.backend for way in ways))
    caplog.set_level(logging.DEBUG, "paramorph_rt")
    bundle = load_bundle(bundle_path)
    assert choose_backend(bundle, threads=3).name == "works"  # without a try of fp16
    assert "no fp16" not in caplog.text
    caplog.clear()
    fp16 = replace(bundle.network(), precision="fp16")
    bundle = replace(bundle, networks=(*bundle.networks, fp16))
    chosen = choose_backend(bundle, threads=3)
    assert (chosen.name, chosen.precision, chosen.shapes) == ("works", "fp32", (NETWORK_SHAPE,))
    assert chosen.at(NETWORK_SHAPE).threads == 3
    assert caplog.messages == [
        "skipped first-way, second-way: GPU: expected one, found none",
        "skipped third-way: third: does not start",
        "skipped fourth-way: fourth: no fp16",
        "backend: works in fp32",
    ]
    assert choose_backend(bundle, "fifth").name == "works as well"
    for name, precision, reason in (
        ("third", "auto", "third: does not start"),
        ("fourth", "fp16", "fourth: no fp16"),
        ("auto", "fp16", "fourth: no fp16"),  # the last of those that could
        ("fifth", "fp16", "fifth: expected precision fp32, got fp16"),
        ("auto", "bf16", "auto: expected precision fp32 or fp16, got bf16"),
    ):
        with pytest.raises(BackendError, match=reason):
            choose_backend(bundle, name, precision)


def test_altered_file_is_never_skipped(tmp_path):
    folder = write_bundle(tmp_path / "bundle", smooth_displacement_vox())
    network = folder / "registration.onnx"
    network.write_bytes(network.read_bytes()[::-1])
    with pytest.raises(BundleError, match="the file was altered"):
        choose_backend(load_bundle(folder))


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({"name": "abacus"}, "backend: expected one of auto, onnxruntime, cuda, tensorrt, t"),
        ({"precision": "fp8"}, "precision: expected one of auto, fp32, fp16, bf16, got fp8"),
        ({"name": "onnxruntime", "precision": "bf16"}, "onnxruntime: expected precision fp32, got"),
        ({"name": "openvino", "precision": "fp16"}, "openvino: expected precision fp32 or bf16"),
        ({"name": "cuda", "precision": "bf16"}, "cuda: expected precision fp16 or fp32, got bf16"),
        ({"name": "cuda"}, "GPU: expected one of NVIDIA and its driver, found no driver; choose"),
        ({"name": "tensorrt"}, "GPU: expected one of NVIDIA and its driver"),
        ({"name": "tensorrt-rtx", "precision": "fp32"}, "GPU: expected one of NVIDIA and its dri"),
        ({"precision": "fp16"}, "GPU: expected one of NVIDIA and its driver"),
    ],
)
def test_requests_that_cannot_be_met(bundle_path, request_, match):
    with pytest.raises(BackendError, match=match):
        choose_backend(load_bundle(bundle_path), **request_)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_bundle_without_an_engine_for_the_gpu(bundle_path, a_gpu, name):
    command = (
        rf"got no engine; build it: python export/build_engine.py --bundle {bundle_path} "
        f"--flavour {name} --target sm86$"
    )
    with pytest.raises(BackendError, match=command):
        choose_backend(load_bundle(bundle_path), name)


def test_nobody_is_told_to_build_into_the_installed_package(a_gpu, monkeypatch):
    monkeypatch.delenv("PARAMORPH_MODEL", raising=False)
    bundle = load_bundle(default_bundle_path())
    with pytest.raises(BackendError, match="build it: make engine in a clone") as info:
        choose_backend(bundle, "tensorrt-rtx", "fp16")
    assert str(bundle.folder) not in str(info.value)


def test_onnxruntime_without_cuda(bundle_path, a_gpu):
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("needs an ONNX Runtime for the CPU")
    with pytest.raises(MissingDependencyError, match=r"pip install --no-deps --target DIR onnx"):
        choose_backend(load_bundle(bundle_path), "cuda", "fp32")


def test_provider_that_leaves_the_network_to_the_cpu(bundle_path, a_gpu, monkeypatch):
    """As where CUDA's libraries are missing: ONNX Runtime itself would go on without a word."""
    from paramorph_rt.backends import onnxruntime

    monkeypatch.setattr(onnxruntime, "check_provider", lambda provider: None)
    known = [*ort.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: known)
    with pytest.raises(BackendError, match=r"loads in CUDAExecutionProvider alone, got .*CPU EP"):
        choose_backend(load_bundle(bundle_path), "cuda", "fp32")

    class Silent(ort.InferenceSession):
        """An old one, which knows no such option."""

        def __init__(self, path, options, providers, enable_fallback):
            super().__init__(path, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "InferenceSession", Silent)
    with pytest.raises(BackendError, match="expected the whole network in CUDAExecutionProvider"):
        choose_backend(load_bundle(bundle_path), "cuda", "fp32")


def test_plugin_of_tensorrt_rtx_is_registered_and_given_its_device(
    bundle_path, a_gpu, tmp_path, monkeypatch
):
    """With a plugin and a session that only take notes."""
    from paramorph_rt.backends.onnxruntime import TENSORRT_RTX

    plugin = SimpleNamespace(get_library_path=lambda: "plugin.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", plugin)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices, notes = [], []

    def register(name, path):
        notes.append((name, path))
        devices.append(SimpleNamespace(ep_name=name))

    class Options(ort.SessionOptions):
        def add_provider_for_devices(self, chosen, settings):
            notes.append((chosen, settings))

    class Session(ort.InferenceSession):
        def __init__(self, path, options, providers, enable_fallback):
            assert (providers, enable_fallback) == (None, 0)
            assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
            assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"  # an engine is built here
            super().__init__(path, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [TENSORRT_RTX, "CPUExecutionProvider"]

    monkeypatch.setattr(ort, "register_execution_provider_library", register)
    monkeypatch.setattr(ort, "get_ep_devices", lambda: devices)
    monkeypatch.setattr(ort, "SessionOptions", Options)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    backend = choose_backend(load_bundle(bundle_path), "tensorrt-rtx", "fp32")
    assert (backend.name, backend.precision) == ("onnxruntime-tensorrt-rtx", "fp32")
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    cache = {"nv_runtime_cache_path": str(tmp_path / "paramorph-rt/kernels")}
    assert notes == [(TENSORRT_RTX, "plugin.so"), (devices, cache)]


def test_float32_is_no_tf32_on_a_gpu(monkeypatch, tmp_path):
    """What ONNX Runtime's own providers are told; none may round products to ten bits."""
    from paramorph_rt.backends import onnxruntime

    known = [onnxruntime.CUDA, onnxruntime.TENSORRT]
    monkeypatch.setattr(ort, "get_available_providers", lambda: known)
    monkeypatch.setattr(onnxruntime, "_preload_cuda", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for provider in known:
        settings = dict(onnxruntime._gpu_providers(provider, ort.SessionOptions()))
        assert next(iter(settings)) == provider  # the first is asked first
        assert settings[onnxruntime.CUDA]["use_tf32"] == "0"


def test_cuda_is_looked_for_where_nvidias_wheels_are(bundle_path, a_gpu, tmp_path, monkeypatch):
    """ONNX Runtime looks beside its own package alone, and documents put that elsewhere."""
    from paramorph_rt.backends import onnxruntime

    folders = [tmp_path / "nvidia" / name / "lib" for name in ("cu13", "cudnn")]
    for folder in folders:
        folder.mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    asked = []
    preload = lambda directory=None: asked.append(directory)  # noqa: E731
    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)
    onnxruntime._preload_cuda()
    assert asked == [*map(str, folders), None]
    monkeypatch.setattr(sys, "path", [])
    asked.clear()
    onnxruntime._preload_cuda()
    assert asked == [None]


def test_registration_hands_the_choice_on(bundle_path):
    with pytest.raises(BackendError, match="onnxruntime: expected precision fp32"):
        Registration(bundle_path, backend="onnxruntime", precision="bf16")

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from paramorph_rt import Registration, backends
from paramorph_rt.backends import BACKENDS, choose_backend
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BackendError, MissingDependencyError

from .phantoms import NETWORK_SHAPE, replace_file, smooth_displacement_vox, write_bundle

ZEROS = np.zeros(NETWORK_SHAPE, np.float32)


@pytest.fixture(params=BACKENDS)
def engine(request) -> str:
    if find_spec(request.param) is None:
        pytest.skip(f"needs {request.param}, of the extra of that name")
    return request.param


@pytest.fixture
def no_openvino(monkeypatch):
    """As if it were not installed."""
    monkeypatch.setitem(sys.modules, "openvino", None)
    for name in ("openvino", "openvino_graph"):
        monkeypatch.delitem(sys.modules, f"paramorph_rt.backends.{name}", raising=False)


@pytest.mark.parametrize("threads", [None, 1])
def test_displacement_is_the_network_output(bundle_path, engine, threads):
    backend = choose_backend(load_bundle(bundle_path), engine, threads=threads)
    np.testing.assert_array_equal(backend.run(ZEROS, ZEROS), smooth_displacement_vox())
    assert (backend.name, backend.precision) == (f"{engine}-cpu", "fp32")


def test_input_of_another_shape(bundle_path, engine):
    backend = choose_backend(load_bundle(bundle_path), engine)
    with pytest.raises(BackendError, match=r"registration.onnx: expected a displacement for shape"):
        backend.run(ZEROS[1:], ZEROS[1:])


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


def test_auto_takes_the_first_that_works_and_tells_what_it_skipped(
    bundle_path, monkeypatch, caplog
):
    asked = []

    def load(name, bundle, precision, threads):
        asked.append((name, precision, threads))
        if name == "first":
            raise BackendError("first: expected more, got less")
        return name

    monkeypatch.setattr(backends, "BACKENDS", ("first", "second", "third"))
    monkeypatch.setattr(backends, "_load", load)
    caplog.set_level(logging.INFO, "paramorph_rt")
    bundle = load_bundle(bundle_path)
    assert choose_backend(bundle, threads=3) == "second"
    assert asked == [("first", "fp32", 3), ("second", "fp32", 3)]
    assert caplog.messages == ["backend first skipped: first: expected more, got less"]
    assert choose_backend(bundle, "third", "bf16") == "third"
    with pytest.raises(BackendError, match="expected more, got less"):
        choose_backend(bundle, "first")


def test_without_openvino(bundle_path, no_openvino, caplog):
    caplog.set_level(logging.INFO, "paramorph_rt")
    bundle = load_bundle(bundle_path)
    assert choose_backend(bundle).name == "onnxruntime-cpu"
    assert "backend openvino skipped: openvino: expected the package" in caplog.text
    with pytest.raises(MissingDependencyError, match=r"pip install 'paramorph-rt\[openvino\]'"):
        choose_backend(bundle, "openvino")
    with pytest.raises(
        BackendError, match="expected precision fp32, got bf16; choose --backend op"
    ):
        choose_backend(bundle, precision="bf16")


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({"name": "abacus"}, "backend: expected one of auto, openvino, onnxruntime, got abacus"),
        ({"precision": "fp8"}, "precision: expected one of auto, fp32, bf16, got fp8"),
        ({"name": "onnxruntime", "precision": "bf16"}, "onnxruntime: expected precision fp32, got"),
    ],
)
def test_requests_that_cannot_be_met(bundle_path, request_, match):
    with pytest.raises(BackendError, match=match):
        choose_backend(load_bundle(bundle_path), **request_)


def test_registration_hands_the_choice_on(bundle_path):
    with pytest.raises(BackendError, match="onnxruntime: expected precision fp32"):
        Registration(bundle_path, backend="onnxruntime", precision="bf16")

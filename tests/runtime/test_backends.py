from __future__ import annotations

import numpy as np
import pytest

from paramorph_rt.backends.onnxruntime import OnnxRuntimeBackend
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BackendError

from .phantoms import NETWORK_SHAPE, smooth_displacement_vox, write_bundle

ZEROS = np.zeros(NETWORK_SHAPE, np.float32)


@pytest.mark.parametrize("threads", [None, 1])
def test_displacement_is_the_network_output(bundle_path, threads):
    backend = OnnxRuntimeBackend(load_bundle(bundle_path).network_path, threads)
    np.testing.assert_array_equal(backend.run(ZEROS, ZEROS), smooth_displacement_vox())


def test_input_of_another_shape(bundle_path):
    backend = OnnxRuntimeBackend(load_bundle(bundle_path).network_path)
    with pytest.raises(BackendError, match=r"registration.onnx: expected a displacement for shape"):
        backend.run(ZEROS[1:], ZEROS[1:])


def test_file_that_is_no_network(tmp_path):
    (tmp_path / "registration.onnx").write_bytes(b"nothing")
    with pytest.raises(BackendError, match="expected a network that ONNX Runtime"):
        OnnxRuntimeBackend(tmp_path / "registration.onnx")


def test_output_that_is_not_finite(tmp_path):
    displacement_vox = smooth_displacement_vox()
    displacement_vox[1, 2, 3, 4] = np.nan
    bundle = load_bundle(write_bundle(tmp_path / "bundle", displacement_vox))
    with pytest.raises(BackendError, match="expected finite displacements"):
        OnnxRuntimeBackend(bundle.network_path).run(ZEROS, ZEROS)

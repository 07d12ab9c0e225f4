"""`onnxruntime-gpu` in a folder of its own, as documents say, without a GPU; elsewhere all skip.

    pip install --no-deps --target DIR onnxruntime-gpu
    ONNXRUNTIME_GPU=DIR python -m pytest tests/runtime/test_real_onnxruntime_gpu.py

$CUDA_WHEELS is where the wheels of the extra `cuda` are, if not in this environment. Libraries must
load up to the one that is missing, the driver's, and TensorRT's provider must take our options.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import paramorph_rt

CODE = """
import sys
from pathlib import Path
from paramorph_rt.backends import onnxruntime
from paramorph_rt.errors import BackendError

try:
    onnxruntime.OnnxRuntimeBackend(Path(sys.argv[1]), 1, sys.argv[2])
except BackendError as err:
    print(err)
"""
# What TensorRT's provider asks of TensorRT, all of which answers with nothing.
STUBS = """
static void* nothing(void) { return 0; }
static void* table[64], **object = table;
#define X(name) void* name(void) { return 0; }
X(createInferBuilder_INTERNAL) X(createInferRefitter_INTERNAL) X(createInferRuntime_INTERNAL)
X(createNvOnnxParserRefitter_INTERNAL) X(createNvOnnxParser_INTERNAL)
int getInferLibVersion(void) { return 101400; }
void* getPluginRegistry(void) {
    for (int n = 0; n < 64; ++n) table[n] = nothing;
    return &object;
}
"""


@pytest.fixture
def run(tmp_path, bundle_path):
    """What a provider says of a network, its libraries' lines included."""
    if "ONNXRUNTIME_GPU" not in os.environ:
        pytest.skip("needs $ONNXRUNTIME_GPU, the folder of onnxruntime-gpu")

    def on(provider: str, libraries: Path = tmp_path) -> str:
        runtime = str(Path(paramorph_rt.__file__).parents[1])
        path = [os.environ["ONNXRUNTIME_GPU"], runtime, os.environ.get("CUDA_WHEELS", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "LD_LIBRARY_PATH": str(libraries),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        }
        network = bundle_path / "registration.onnx"
        command = [sys.executable, "-c", CODE, network, provider]
        done = subprocess.run(
            command, env=environment, capture_output=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return on


def test_cuda_lacks_the_driver_alone(run):
    said = run("CUDAExecutionProvider")
    assert "loads in CUDAExecutionProvider alone, got" in said
    assert "libcuda.so.1: cannot open shared object file" in said
    for library in ("libcublas", "libcudnn", "libcudart", "libcufft", "libcurand", "libnvrtc"):
        assert library not in said


def test_tensorrt_takes_our_options(run, tmp_path):
    (tmp_path / "stubs.c").write_text(STUBS, encoding="utf-8")
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler")
    for name in ("libnvinfer.so.10", "libnvonnxparser.so.10"):
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", tmp_path / "stubs.c"]
        subprocess.run([*command, "-o", tmp_path / name], check=True)
    said = run("TensorrtExecutionProvider")
    assert "loads in TensorrtExecutionProvider alone, got" in said
    assert "should be 'True' or 'False'" not in said

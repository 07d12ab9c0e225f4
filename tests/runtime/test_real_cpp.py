"""The C library on a GPU, with an engine of the bundle in $PARAMORPH_MODEL; elsewhere all skip.

$LIBPARAMORPH is the library, built with the headers of the TensorRT that built the engine;
$TENSORRT_LIBRARY that TensorRT, where the loader does not find it by its name.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from paramorph_rt.backends import choose_backend, gpu
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BackendError

from .phantoms import replace_file

NEEDED = ("LIBPARAMORPH", "PARAMORPH_MODEL")


@pytest.fixture(scope="module")
def client():
    """`cpp/client.py`, on the real library."""
    try:
        gpu.find_gpu()
    except BackendError as err:
        pytest.skip(str(err))
    if missing := [name for name in NEEDED if name not in os.environ]:
        pytest.skip(f"needs {' and '.join(missing)}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "cpp")
        yield importlib.import_module("client")


@pytest.fixture(scope="module")
def opened(client):
    """Opens the bundle's engine with more options; the test closes it."""

    def open_engine(**options):
        if library := os.environ.get("TENSORRT_LIBRARY"):
            options = {"library": library, **options}
        return client.Engine(os.environ["PARAMORPH_MODEL"], **options)

    return open_engine


@pytest.fixture
def engine(opened):
    with opened() as engine:
        yield engine


def pairs_of(shape, count: int = 1) -> np.ndarray:
    return np.random.default_rng(3).random((count, 2, *shape), np.float32)


def test_displacement_is_that_of_python(engine):
    ((moving, fixed),) = pairs_of(engine.shape)
    bundle = load_bundle(os.environ["PARAMORPH_MODEL"])
    backend = choose_backend(bundle, engine.info.flavour.decode(), engine.info.precision.decode())
    displacement, warped = engine.register(moving, fixed)
    # The same engine; its kernels may sum in another order.
    np.testing.assert_allclose(displacement, backend.run(moving, fixed), atol=1e-3)
    assert np.isfinite(warped).all()


@pytest.mark.parametrize("kind", ["torch", "cudart", "own"])
def test_streams_of_others(engine, kind):
    """Between PyTorch's kernels, without a wait, in streams that take turns."""
    torch = pytest.importorskip("torch")
    streams = {"torch": torch_streams, "cudart": cudart_streams, "own": lambda _: [engine.stream]}
    pairs = pairs_of(engine.shape, 4)
    expected = [engine.register(*pair)[0] for pair in pairs]
    found = []
    chosen = streams[kind](torch)
    for number, pair in enumerate(pairs):
        stream = chosen[number % len(chosen)]
        with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
            moving, fixed = (torch.from_numpy(v).cuda() * 2 / 2 for v in pair)
            displacement = torch.full((3, *engine.shape), torch.nan, device="cuda")
            warped = torch.empty(engine.shape, device="cuda")
            arrays = (moving, fixed, displacement, warped)
            engine.register_async(*(a.data_ptr() for a in arrays), stream=stream)
            found.append((displacement + 0, *arrays))  # reads in the same stream
    torch.cuda.synchronize()
    for (displacement, *_), right in zip(found, expected, strict=True):
        np.testing.assert_allclose(displacement.cpu().numpy(), right, atol=1e-3)


def torch_streams(torch) -> list[int]:
    torch_streams.kept = [torch.cuda.Stream() for _ in range(2)]
    return [stream.cuda_stream for stream in torch_streams.kept]


def cudart_streams(torch) -> list[int]:
    """Of the CUDA runtime that PyTorch has loaded."""
    torch.cuda.init()
    with open("/proc/self/maps", encoding="utf-8") as maps:
        (path, *_) = {line.split()[-1] for line in maps if "libcudart" in line}
    runtime, streams = ctypes.CDLL(path), [ctypes.c_void_p() for _ in range(2)]
    for stream in streams:
        assert runtime.cudaStreamCreate(ctypes.byref(stream)) == 0
    return [stream.value for stream in streams]


def test_two_engines_in_two_threads(opened):
    with opened() as first, opened() as second, ThreadPoolExecutor(2) as pool:
        pairs = pairs_of(first.shape, 8)
        expected = [first.register(*pair)[0] for pair in pairs]
        jobs = [pool.submit(engine.register, *pair) for engine in (first, second) for pair in pairs]
        for job, right in zip(jobs, [*expected, *expected], strict=True):
            np.testing.assert_allclose(job.result()[0], right, atol=1e-3)


def test_seconds_to_open(opened):
    """`-rP` prints them; kernels of TensorRT for RTX are compiled at every open."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        with opened() as engine:
            engine.register(*pairs_of(engine.shape)[0])
        seconds.append(round(time.perf_counter() - start, 2))
    print(f"open, register, close: {seconds} s")


def test_what_tensorrt_says_is_told(client, opened, tmp_path):
    """Of a file that is no engine, under a manifest that agrees with it."""
    folder = shutil.copytree(os.environ["PARAMORPH_MODEL"], tmp_path / "bundle")
    with opened() as engine:
        file = engine.info.file.decode()
    replace_file(folder, file, b"nothing")
    library = os.environ.get("TENSORRT_LIBRARY")
    status, sentence = client.refusal(client.Engine, str(folder), library=library)
    assert status != 0
    assert f"{file}: expected an engine from TensorRT, got none (" in sentence
    assert "it logged no reason" not in sentence

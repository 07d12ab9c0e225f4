"""What a process with a GPU does, one function each, on a bundle with an engine for the fake GPU.

`test_gpu.py` runs them in processes of their own. No stream moves before somebody waits.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorrt_rtx

from paramorph_rt.backends import choose_backend
from paramorph_rt.backends.device_memory import open_device
from paramorph_rt.backends.gpu import find_gpu
from paramorph_rt.bundle import load_bundle
from paramorph_rt.errors import BackendError

DRIVER = ctypes.CDLL("libcuda.so.1")
GENERATOR = np.random.default_rng(1)


def engine(folder: Path):
    bundle = load_bundle(folder)
    return choose_backend(bundle, "tensorrt-rtx", "fp16").at(bundle.inputs.grid.shape)


def by_cuda_python() -> bool:
    return open_device().library == "cuda-python"


def pair(shape) -> np.ndarray:
    return GENERATOR.random((2, *shape), np.float32)


def expected(moving: np.ndarray, fixed: np.ndarray) -> np.ndarray:
    return np.stack([n * moving - fixed for n in (1, 2, 3)])


def live_handles() -> int:
    gc.collect()
    return DRIVER.fake_live()


def library_is_pycuda(folder: Path) -> None:
    assert open_device().library == "pycuda"


def library_is_cuda_python(folder: Path) -> None:
    assert open_device().library == "cuda-python"


def gpu_is_described(folder: Path) -> None:
    gpu = find_gpu()
    assert (gpu.name, gpu.compute_capability) == ("Fake RTX 3080", "8.6")
    assert (gpu.memory_bytes, gpu.driver_cuda) == (10 * 2**30, "13.1")


def pairs_follow_one_another(folder: Path) -> None:
    backend = engine(folder)
    assert (backend.name, backend.precision) == ("tensorrt-rtx", "fp16")
    shape = load_bundle(folder).inputs.grid.shape
    kept = []
    for order in "CFC":
        moving, fixed = (np.asarray(volume, order=order) for volume in pair(shape))
        found = backend.run(moving, fixed)
        assert found.dtype == np.float32
        kept.append((found, expected(moving, fixed)))
    for found, right in kept:  # no result is the buffer of the next
        np.testing.assert_allclose(found, right, rtol=1e-6)


def engine_without_a_warped_volume(folder: Path) -> None:
    """Named `displacement_only` beside the bundle."""
    folder = folder.with_name("displacement_only")
    backend = engine(folder)
    shape = load_bundle(folder).inputs.grid.shape
    moving, fixed = pair(shape)
    np.testing.assert_allclose(backend.run(moving, fixed), expected(moving, fixed), rtol=1e-6)
    device = open_device()
    with device.active():
        stream, memory = device.stream(), device.allocate(12 * moving.size)
    with refused("expected no address for a warped volume, which this engine does not give"):
        backend.enqueue(*[memory.address] * 4, stream=stream.handle)


def threads_take_turns(folder: Path) -> None:
    backend = engine(folder)
    shape = load_bundle(folder).inputs.grid.shape
    pairs = [pair(shape) for _ in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda volumes: backend.run(*volumes), pairs))
    for (moving, fixed), displacement in zip(pairs, found, strict=True):
        np.testing.assert_allclose(displacement, expected(moving, fixed), rtol=1e-6)


def memory_is_given_back(folder: Path) -> None:
    assert live_handles() == 0
    backend = engine(folder)
    # four tensors, three of them on the host too, a stream and perhaps an event
    assert live_handles() in (8, 9)
    moving, fixed = pair(load_bundle(folder).inputs.grid.shape)
    before = live_handles()
    for _ in range(3):
        backend.run(moving, fixed)
    assert live_handles() == before
    del backend
    assert live_handles() == 0


def engine_of_another_thread(folder: Path) -> None:
    """Made in a thread that has ended, as `loaded` makes it, and dropped in this one."""
    assert live_handles() == 0
    with ThreadPoolExecutor(1) as pool:
        backend = pool.submit(engine, folder).result()
    moving, fixed = pair(load_bundle(folder).inputs.grid.shape)
    np.testing.assert_allclose(backend.run(moving, fixed), expected(moving, fixed), rtol=1e-6)
    del backend
    assert live_handles() == 0


def closed_engine(folder: Path) -> None:
    backend = engine(folder)
    backend.close()
    assert live_handles() == 0
    backend.close()
    with refused("expected an open engine, got one that was closed; load it again"):
        backend.run(*pair(load_bundle(folder).inputs.grid.shape))


def graph_is_captured_once(folder: Path) -> None:
    """Whatever addresses and streams the caller has, and before the first real pair."""
    backend = engine(folder)
    shape = load_bundle(folder).inputs.grid.shape
    device = open_device()
    tensorrt_rtx.LOG.clear()
    with device.active():
        stream = device.stream()
        sizes = [4 * c * int(np.prod(shape)) for c in (1, 1, 3)]
        for handle in (stream.handle, stream.handle, 0):
            memory = [device.allocate(size) for size in sizes]
            backend.enqueue(*(m.address for m in memory), stream=handle)
            backend.run(*pair(shape))
    assert tensorrt_rtx.LOG == ["replayed"] * 6, tensorrt_rtx.LOG


def default_stream_of_the_callers(folder: Path) -> None:
    backend = engine(folder)
    shape = load_bundle(folder).inputs.grid.shape
    device = open_device()
    moving, fixed = pair(shape)
    with device.active():
        arrays = [device.pinned((c, *shape)) for c in (1, 1, 3)]
        memory = [device.allocate(array.nbytes) for array in arrays]
        arrays[0][0], arrays[1][0] = moving, fixed
        default = SimpleNamespace(handle=0) if by_cuda_python() else None
        for array, m in zip(arrays[:2], memory, strict=False):
            device.upload(m.address, array, default)
        backend.enqueue(*(m.address for m in memory), stream=0)
        device.download(arrays[2], memory[2].address, default)
        assert DRIVER.cuStreamSynchronize(None) == 0
        np.testing.assert_allclose(arrays[2], expected(moving, fixed), rtol=1e-6)


def other_shape_is_refused(folder: Path) -> None:
    backend = engine(folder)
    with refused("expected volumes of shape (20, 24, 16), got (19, 24, 16)"):
        backend.run(*pair((19, 24, 16)))


def callers_memory_and_stream(folder: Path) -> None:
    """Two launches in streams of the caller's, then one of ours, all on the same activations."""
    backend = engine(folder)
    shape = load_bundle(folder).inputs.grid.shape
    device = open_device()
    with device.active():
        streams = [device.stream() for _ in range(2)]
        work = []
        for stream in streams:
            moving, fixed = pair(shape)
            arrays = [device.pinned((c, *shape)) for c in (1, 1, 3, 1)]
            memory = [device.allocate(array.nbytes) for array in arrays]
            arrays[0][0], arrays[1][0] = moving, fixed
            for array, m in zip(arrays[:2], memory[:2], strict=True):
                device.upload(m.address, array, stream)
            backend.enqueue(*(m.address for m in memory), stream=stream.handle)
            if by_cuda_python():  # it did not wait
                assert DRIVER.fake_pending(ctypes.c_void_p(stream.handle)) > 0
            for array, m in zip(arrays[2:], memory[2:], strict=True):
                device.download(array, m.address, stream)
            work.append((arrays, memory, moving, fixed))
        # Ours must wait for the second, which waits for the first: but for that they would race.
        moving, fixed = pair(shape)
        np.testing.assert_allclose(backend.run(moving, fixed), expected(moving, fixed), rtol=1e-6)
        launched = [DRIVER.fake_pending(ctypes.c_void_p(s.handle)) for s in streams]
        assert max(launched) <= 3, launched  # at most the wait for ours, and the downloads
        for stream, (arrays, _, moving, fixed) in zip(streams, work, strict=True):
            stream.synchronize()
            np.testing.assert_allclose(arrays[2], expected(moving, fixed), rtol=1e-6)
            np.testing.assert_allclose(arrays[3][0], moving + fixed, rtol=1e-6)


def address_that_the_gpu_has_not(folder: Path) -> None:
    backend = engine(folder)
    shape = load_bundle(folder).inputs.grid.shape
    device = open_device()
    with device.active():
        stream = device.stream()
        memory = device.allocate(4096)  # too little
        with refused(
            "GPU: expected memory and time for the network, got cuMemcpyDtoDAsync: CUDA_E"
        ):
            backend.enqueue(*[memory.address] * 3, stream=stream.handle)
    moving, fixed = pair(shape)
    np.testing.assert_allclose(backend.run(moving, fixed), expected(moving, fixed), rtol=1e-6)


def kept_kernels() -> Path:
    (kept,) = (Path(os.environ["XDG_CACHE_HOME"]) / "paramorph-rt" / "kernels").iterdir()
    return kept


def kernels_are_kept(folder: Path) -> None:
    """Called twice, in two processes; nothing is written into the bundle."""
    before = sorted(folder.rglob("*"))
    first = not os.path.isdir(os.environ["XDG_CACHE_HOME"])
    engine(folder)
    whole, runs = "context with WHOLE_GRAPH_CAPTURE", ["captured", "replayed"]
    began = [whole, "compiled", "launched"] if first else ["cache loaded", whole, "launched"]
    assert [*began, *runs] == tensorrt_rtx.LOG, tensorrt_rtx.LOG
    assert b"kernel" in kept_kernels().read_bytes()
    assert sorted(folder.rglob("*")) == before


def kernels_of_another_version_are_replaced(folder: Path) -> None:
    engine(folder)
    kept_kernels().write_bytes(b'{"version": "1.0", "kernels": ["kernel"]}')
    tensorrt_rtx.LOG.clear()
    engine(folder)
    assert "cache refused" in tensorrt_rtx.LOG
    assert "compiled" in tensorrt_rtx.LOG
    assert b'"version": "1.7.1.116"' in kept_kernels().read_bytes()


def plugin_is_loaded_once(folder: Path) -> None:
    """By two engines of one process, which need it."""
    for _ in range(2):
        pairs_follow_one_another(folder)
    assert tensorrt_rtx.LOG.count("plugin GridSample3D") == 1


def too_little_memory(folder: Path) -> None:
    with refused("GPU: expected memory and time for the network, got"):
        engine(folder)


def each_is_refused_at_load(folder: Path) -> None:
    """Bundles, and what `expected.json` says of each by its name."""
    for name, words in json.loads((folder / "expected.json").read_text(encoding="utf-8")).items():
        with refused(words):
            engine(folder / name)
    assert live_handles() == 0


class refused:  # noqa: N801 - reads as pytest.raises, which would take a second to import
    """One sentence that holds some words."""

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, _) -> bool:
        assert isinstance(error, BackendError), repr(error)
        assert self._words in str(error), error
        assert "\n" not in str(error)
        return True


if __name__ == "__main__":
    *scenarios, argument = sys.argv[1:]
    for scenario in scenarios:
        globals()[scenario](Path(argument))

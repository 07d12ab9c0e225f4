"""The same on a real GPU: `PARAMORPH_MODEL=BUNDLE python -m pytest tests/runtime/test_real_gpu.py`.

The bundle needs an engine for the card; without one, only memory and streams are tested.
"""

from __future__ import annotations

import numpy as np
import pytest

from paramorph_rt.backends import choose_backend, device_memory
from paramorph_rt.backends.gpu import Gpu, find_gpu
from paramorph_rt.backends.tensorrt import EngineBackend
from paramorph_rt.bundle import default_bundle_path, load_bundle
from paramorph_rt.errors import BackendError

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu() -> Gpu:
    try:
        return find_gpu()
    except BackendError as err:
        pytest.skip(f"needs an NVIDIA GPU: {err}")


@pytest.fixture(params=["_PyCudaDevice", "_CudaPythonDevice"])
def device(request, gpu) -> device_memory.Device:
    try:
        return getattr(device_memory, request.param)()
    except ImportError as err:
        pytest.skip(f"needs its package: {err}")


@pytest.fixture
def engine(gpu) -> EngineBackend:
    bundle = load_bundle(default_bundle_path())
    flavours = {entry.flavour for entry in bundle.engines}
    if not flavours:
        pytest.skip("needs a bundle with an engine for this GPU in $PARAMORPH_MODEL")
    backend = choose_backend(bundle, sorted(flavours)[-1]).at(bundle.inputs.grid.shape)
    assert isinstance(backend, EngineBackend)
    return backend


def test_driver_and_torch_agree(gpu):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs PyTorch with CUDA")
    card = torch.cuda.get_device_properties(0)
    assert (gpu.name, gpu.compute_capability) == (card.name, f"{card.major}.{card.minor}")


def test_memory_comes_back_as_it_went(device):
    values = np.random.default_rng(1).random((3, 40, 50, 60), np.float32)
    with device.active():
        first, second = device.stream(), device.stream()
        there, back = device.pinned(values.shape), device.pinned(values.shape)
        there[:] = values
        memory, event = device.allocate(values.nbytes), device.event()
        for _ in range(50):  # a race between the streams would show
            back[:] = 0
            device.upload(memory.address, there, first)
            device.record(event, first.handle)
            device.wait(event, second.handle)
            device.download(back, memory.address, second)
            second.synchronize()
            np.testing.assert_array_equal(back, values)
            there[:] = values = values + 1


def test_memory_that_the_gpu_has_not(device, gpu):
    with pytest.raises(BackendError, match="GPU: expected memory"), device.active():
        device.allocate(2 * gpu.memory_bytes)


def test_torch_tensors_in_torch_streams(engine):
    """Between kernels of PyTorch's and without a wait, in streams that take turns."""
    torch = pytest.importorskip("torch")
    shape = load_bundle(default_bundle_path()).inputs.grid.shape
    pairs = np.random.default_rng(2).random((4, 2, *shape), np.float32)
    expected = [engine.run(*pair) for pair in pairs]
    streams = [torch.cuda.Stream() for _ in range(2)]
    found = []
    for number, pair in enumerate(pairs):
        stream = streams[number % 2]
        with torch.cuda.stream(stream):
            moving, fixed = (torch.from_numpy(v)[None, None].cuda() * 2 / 2 for v in pair)
            displacement = torch.full((1, 3, *shape), torch.nan, device="cuda")
            engine.enqueue(
                *(t.data_ptr() for t in (moving, fixed, displacement)), stream=stream.cuda_stream
            )
            found.append((displacement + 0, moving, fixed))  # reads in the same stream
    torch.cuda.synchronize()
    for (displacement, *_), right in zip(found, expected, strict=True):
        np.testing.assert_allclose(displacement[0].cpu().numpy(), right, atol=1e-3)

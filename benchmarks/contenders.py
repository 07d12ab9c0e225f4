"""One network by one engine, in a process of its own: the contenders of latency.py and gpu.py.

Needs numpy and what its engine needs, nothing else, so that a process's memory is its engine's:
PyTorch is loaded for PyTorch only, and nothing else than it is needed on a machine with a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from costs import timed, within

if TYPE_CHECKING:
    from jaxtyping import Float

    Run = Callable[
        [Float[np.ndarray, "i j k"], Float[np.ndarray, "i j k"]], Float[np.ndarray, "3 i j k"]
    ]

WARM_UP = 3
AT_LEAST = 5  # runs, however long they take


@dataclass(frozen=True)
class Spec:
    """One network by one engine; all paths absolute.

    Attributes:
        engine: A key of `LOADERS`, or `backend:precision` of the runtime.
        threads: For the engine.
        bundle: For the runtime.
        weights: That the bundle was exported from, for PyTorch.
        device: "cuda" or "cpu", for PyTorch.
    """

    engine: str
    threads: int
    bundle: str
    weights: str | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Contender:
    """A network, loaded.

    Attributes:
        run: Two arrays (i, j, k) to a displacement (3, i, j, k), all on the host.
        on_device: The same on arrays that are on the device already, until it is done there.
        notes: For the report.
    """

    run: Run
    on_device: Callable[[], object] | None = None
    notes: dict[str, Any] | None = None


def load(spec: Spec) -> Contender:
    """Load the engine's package and the network."""
    if spec.engine in LOADERS:
        return LOADERS[spec.engine](spec)
    return by_backend(spec, *spec.engine.split(":"))


def runner(spec: Spec) -> Run:
    """The function that a worker of latency.py calls."""
    return load(spec).run


def registration_seconds(model: str, threads: int, engine: str) -> float:
    """Loading as a user's first registration does it, the engine's package included."""
    from paramorph_rt import Registration

    return timed(lambda: Registration(model, threads, *engine.split(":"))).seconds


def measured(
    spec: Spec, volumes: Float[np.ndarray, "2 i j k"], runs: int, seconds: float
) -> dict[str, Any]:
    """Load, warm up and time, for gpu.py; the displacement is among the report.

    Args:
        spec: What is loaded.
        volumes: Moving and fixed in [0, 1].
        runs: At most.
        seconds: After which no further run starts.
    """
    contender, load_seconds, _ = timed(lambda: load(spec))

    def run() -> np.ndarray:
        return contender.run(*volumes)

    def warmed(call: Callable[[], object]) -> list[float]:
        for _ in range(min(WARM_UP, runs)):
            call()
        return within(call, runs, seconds, AT_LEAST)

    displacement, first_seconds, _ = timed(run)  # kernels are compiled or chosen
    report = {"load_seconds": load_seconds, "first_seconds": first_seconds, "seconds": warmed(run)}
    if contender.on_device is not None:
        report["device_seconds"] = warmed(contender.on_device)
    report["memory_used_mb"] = memory_used_mb()
    return {**report, **(contender.notes or {}), "displacement": displacement}


def by_torch(spec: Spec, precision: str = "fp32", compiled: bool = False) -> Contender:
    """The training code's network; halves are autocast's, with what it leaves in float32."""
    import torch

    from paramorph.checkpoint import load_weights

    # float32 shall be float32 here, as it is in the engines.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    on_gpu = spec.device == "cuda"
    network = load_weights(spec.weights)[0].to(spec.device).eval()
    forward = torch.compile(network) if compiled else network
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    half = torch.autocast(spec.device, dtype, enabled=precision != "fp32")
    pinned: list[torch.Tensor] = []  # on the host, where copies to the device start
    inputs: list[torch.Tensor] = []  # of the last run, on the device

    def on_device() -> torch.Tensor:
        with torch.inference_mode(), half:
            displacement = forward(*inputs)
        if on_gpu:
            torch.cuda.synchronize()
        return displacement

    def run(*volumes: np.ndarray) -> np.ndarray:
        inputs[:] = [torch.from_numpy(volume)[None, None] for volume in volumes]
        if on_gpu:
            pinned[:] = pinned or [torch.empty_like(v, pin_memory=True) for v in inputs]
            inputs[:] = [p.copy_(v).to(spec.device) for p, v in zip(pinned, inputs, strict=True)]
        return on_device()[0].float().cpu().numpy()

    return Contender(run, on_device, {"torch": torch.__version__, "cuda": torch.version.cuda})


def by_backend(spec: Spec, name: str, precision: str, **options: Any) -> Contender:
    """The runtime's, as `paramorph-rt infer` runs it."""
    from paramorph_rt.backends import choose_backend
    from paramorph_rt.bundle import load_bundle

    bundle = load_bundle(spec.bundle)
    shape = bundle.inputs.grid.shape
    if options:
        backend = engine_backend(bundle, name, precision, **options)
    else:
        backend = choose_backend(bundle, name, precision, spec.threads).at(shape)
    on_device = enqueued(backend, shape) if hasattr(backend, "enqueue") else None
    return Contender(backend.run, on_device, {"backend": backend.name})


def engine_backend(bundle: Any, flavour: Any, precision: str, **options: Any) -> Any:
    """A native engine with other options than `choose_backend` gives it."""
    from paramorph_rt.backends import engine_files, tensorrt
    from paramorph_rt.backends.gpu import find_gpu

    capability = find_gpu().compute_capability
    library = tensorrt.import_library(flavour)
    engines = engine_files.engines_for(bundle, flavour, precision, capability)
    entry = engine_files.engine_of_version(engines, library.__version__, bundle)
    return tensorrt.EngineBackend(bundle, entry, library, **options)


def enqueued(backend: Any, shape: tuple[int, ...]) -> Callable[[], None]:
    """Launches on memory and a stream of our own, until they are done."""
    from paramorph_rt.backends.device_memory import open_device

    device = open_device()
    with device.active():
        stream = device.stream()
        memory = [device.allocate(channels * int(np.prod(shape)) * 4) for channels in (1, 1, 3)]
        zeros = device.pinned((1, *shape))
        zeros[:] = 0
        for volume in memory[:2]:
            device.upload(volume.address, zeros, stream)
        stream.synchronize()

    def launch() -> None:
        backend.enqueue(*(m.address for m in memory), stream=stream.handle)
        with device.active():
            stream.synchronize()

    return launch


def memory_used_mb() -> float | None:
    """Device memory in use by everybody (10⁶ bytes); None without NVIDIA's tool."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    used = subprocess.run(query, capture_output=True, encoding="utf-8", check=False).stdout
    return float(used.split()[0]) * 1.048576 if used.strip() else None


Load = Callable[[Spec], Contender]
HALVES = ("fp16", "bf16")
#: For latency.py, besides the runtime's engines.
PYTORCH = "pytorch"
#: For gpu.py.
ON_GPU: dict[str, Load] = {
    **{f"torch {p}": partial(by_torch, precision=p) for p in ("fp32", *HALVES)},
    **{
        f"torch.compile {p}": partial(by_torch, precision=p, compiled=True)
        for p in (*HALVES, "fp32")
    },
    **{
        f"{title} {p}": partial(by_backend, name=name, precision=p)
        for title, name in (("tensorrt-rtx", "tensorrt-rtx"), ("onnxruntime cuda", "cuda"))
        for p in ("fp16", "fp32")
    },
    "tensorrt fp16": partial(by_backend, name="tensorrt", precision="fp16"),
    "tensorrt-rtx fp16, no CUDA graph": partial(
        by_backend, name="tensorrt-rtx", precision="fp16", cuda_graph=False
    ),
}
#: For what a GPU has no time.
ON_CPU = {"onnxruntime cpu fp32": partial(by_backend, name="onnxruntime", precision="fp32")}
LOADERS = {PYTORCH: by_torch, **ON_GPU, **ON_CPU}

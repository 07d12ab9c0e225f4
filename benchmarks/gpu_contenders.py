"""The contenders of gpu.py: one network by one engine. As a script, the process of one of them.

Needs numpy and what its engine needs, nothing else: PyTorch is loaded for PyTorch only.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INPUTS = "inputs.npy"
DISPLACEMENT = "displacement.npy"
REPORT = "report.json"
WARM_UP = 3
AT_LEAST = 5  # runs, however long they take


@dataclass(frozen=True)
class Task:
    """One contender on one network; all paths absolute.

    Attributes:
        contender: A key of `CONTENDERS`.
        device: "cuda" or "cpu", for PyTorch.
        weights: Of this toolkit, for PyTorch.
        bundle: Exported from them, for the engines.
        inputs: Two volumes, (2, i, j, k) in [0, 1].
        folder: For the report and the displacement.
        runs: At most.
        seconds: After which no further run starts.
    """

    contender: str
    device: str
    weights: str
    bundle: str
    inputs: str
    folder: str
    runs: int
    seconds: float


@dataclass(frozen=True)
class Runner:
    """A network, loaded.

    Attributes:
        run: Two arrays (i, j, k) to a displacement (3, i, j, k), all on the host.
        on_device: The same on arrays that are on the device already, until it is done there.
        notes: For the report.
    """

    run: Callable[[np.ndarray, np.ndarray], np.ndarray]
    on_device: Callable[[], object] | None = None
    notes: dict[str, Any] | None = None


def by_torch(precision: str, compiled: bool = False) -> Callable[[Task], Runner]:
    """The training code's network; halves are autocast's, with what it leaves in float32."""

    def load(task: Task) -> Runner:
        import torch

        from paramorph.checkpoint import load_weights

        # float32 shall be float32 here, as it is in the engines.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        network = load_weights(task.weights)[0].to(task.device)
        forward = torch.compile(network) if compiled else network
        on_gpu = task.device == "cuda"
        shape = np.load(task.inputs, mmap_mode="r").shape[1:]
        host = torch.empty(2, 1, 1, *shape, pin_memory=on_gpu)
        moving, fixed = device = host.to(task.device)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        half = torch.autocast(task.device, dtype, enabled=precision != "fp32")

        def on_device() -> torch.Tensor:
            with torch.inference_mode(), half:
                displacement = forward(moving, fixed)
            if on_gpu:
                torch.cuda.synchronize()
            return displacement

        def run(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            for target, volume in zip(host, (first, second), strict=True):
                target[0, 0] = torch.from_numpy(volume)
            device.copy_(host)
            return on_device()[0].float().cpu().numpy()

        return Runner(run, on_device, {"torch": torch.__version__, "cuda": torch.version.cuda})

    return load


def by_backend(name: str, precision: str, **options: Any) -> Callable[[Task], Runner]:
    """The runtime's, as `paramorph-rt infer` runs it."""

    def load(task: Task) -> Runner:
        from paramorph_rt.backends import choose_backend
        from paramorph_rt.bundle import load_bundle

        bundle = load_bundle(task.bundle)
        if options:
            backend = engine_backend(bundle, name, precision, **options)
        else:
            backend = choose_backend(bundle, name, precision).at(bundle.inputs.grid.shape)
        on_device = (
            enqueued(backend, bundle.inputs.grid.shape) if hasattr(backend, "enqueue") else None
        )
        return Runner(backend.run, on_device, {"backend": backend.name})

    return load


def engine_backend(bundle: Any, flavour: Any, precision: str, **options: Any) -> Any:
    """A native engine with other options than `choose_backend` gives it."""
    from paramorph_rt.backends import tensorrt
    from paramorph_rt.backends.gpu import find_gpu

    capability = find_gpu().compute_capability
    library = tensorrt.import_library(flavour)
    engines = tensorrt.engines_for(bundle, flavour, precision, capability)
    entry = tensorrt.engine_of_version(engines, library.__version__, bundle)
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


CONTENDERS = {
    "torch fp32": by_torch("fp32"),
    "torch fp16": by_torch("fp16"),
    "torch bf16": by_torch("bf16"),
    "torch.compile fp32": by_torch("fp32", compiled=True),
    "torch.compile fp16": by_torch("fp16", compiled=True),
    "torch.compile bf16": by_torch("bf16", compiled=True),
    "tensorrt-rtx fp16": by_backend("tensorrt-rtx", "fp16"),
    "tensorrt-rtx fp16, no CUDA graph": by_backend("tensorrt-rtx", "fp16", cuda_graph=False),
    "tensorrt-rtx fp32": by_backend("tensorrt-rtx", "fp32"),
    "tensorrt fp16": by_backend("tensorrt", "fp16"),
    "onnxruntime cuda fp16": by_backend("cuda", "fp16"),
    "onnxruntime cuda fp32": by_backend("cuda", "fp32"),
    "onnxruntime cpu fp32": by_backend("onnxruntime", "fp32"),
    "openvino cpu fp32": by_backend("openvino", "fp32"),
}
#: What a GPU has no time for.
ON_CPU = ("onnxruntime cpu fp32", "openvino cpu fp32")


def measure(task: Task) -> dict[str, Any]:
    """Load, warm up, time; the displacement goes to a file."""
    moving, fixed = np.load(task.inputs)
    start = time.perf_counter()
    runner = CONTENDERS[task.contender](task)
    report: dict[str, Any] = {"load_seconds": time.perf_counter() - start, **(runner.notes or {})}
    start = time.perf_counter()
    displacement = runner.run(moving, fixed)
    report["first_seconds"] = time.perf_counter() - start  # kernels are compiled or chosen
    np.save(Path(task.folder) / DISPLACEMENT, displacement)
    report["seconds"] = timed(lambda: runner.run(moving, fixed), task)
    if runner.on_device is not None:
        report["device_seconds"] = timed(runner.on_device, task)
    report["memory_used_mb"] = memory_used_mb()
    return report


def timed(call: Callable[[], object], task: Task) -> list[float]:
    """Seconds of each run, after some to warm up."""
    for _ in range(min(WARM_UP, task.runs)):
        call()
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < task.runs:
        if time.perf_counter() - began > task.seconds and len(seconds) >= AT_LEAST:
            break
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def memory_used_mb() -> float | None:
    """Device memory in use by everybody (10⁶ bytes); None without NVIDIA's tool."""
    import shutil
    import subprocess

    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, encoding="utf-8", check=False).stdout
    return float(found.split()[0]) * 1.048576 if found.strip() else None


def main(argument: str) -> None:
    task = Task(**json.loads(argument))
    report = measure(task)
    (Path(task.folder) / REPORT).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    from paramorph_rt.errors import ParamorphError

    try:
        main(sys.argv[1])
    except ParamorphError as err:  # its sentence, without what led there
        sys.exit(str(err))

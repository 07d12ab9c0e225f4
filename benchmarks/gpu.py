"""The network on a GPU by every engine: latency, memory, differences.

Needs PyTorch with CUDA, no network, and none of the runtime's other dependencies; weights are in
the repository or made from a seed, networks and engines are exported on the spot, or beforehand on
a machine without a GPU (`--prepare DIR` there, `--prepared DIR` here). Every contender has a
process of its own; what is missing is recorded with the reason. The result is written after each.

    PYTHONPATH=runtime:models:export python benchmarks/gpu.py --out DIR

Latency is from arrays on the host to the displacement on the host; "on the device" leaves both
copies out. Memory is what the card has less of than before the process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import record
from gpu_contenders import (
    CONTENDERS,
    DISPLACEMENT,
    INPUTS,
    ON_CPU,
    REPORT,
    Task,
    memory_used_mb,
)
from isolated import run_isolated
from paramorph_rt.backends.gpu import find_gpu
from paramorph_rt.errors import exit_code
from tables import differences, markdown_table

ROOT = Path(__file__).parents[1]
NETWORKS = ("brain-t1-small", "paramorph")
PACKAGES = ("onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt", "cuda-bindings", "pycuda")
ENGINES = ("onnxruntime", "tensorrt", "openvino")  # which need a bundle
COLUMNS = (
    ("engine", "contender", ""),
    ("median, ms", "median_ms", ".1f"),
    ("p99, ms", "p99_ms", ".1f"),
    ("n", "n", "d"),
    ("on the device, ms", "device_median_ms", ".1f"),
    ("loading, s", "load_seconds", ".1f"),
    ("first run, s", "first_seconds", ".1f"),
    ("memory, MB", "memory_mb", ".0f"),
    ("mean difference, voxel", "mean_difference_vox", ".1e"),
    ("p99.9", "p999_difference_vox", ".1e"),
    ("largest", "max_difference_vox", ".1e"),
)


class Prepared:
    """A network's weights and bundle, and why there is none of a kind.

    Args:
        name: See `--networks`.
        folder: Where they are, or will be; what is there already is not made again.
        args: Of the command.
        targets: Engines to build, by flavour.
    """

    def __init__(
        self, name: str, folder: Path, args: argparse.Namespace, targets: dict[str, str]
    ) -> None:
        self.weights = Path(name)
        self.bundle = folder / "bundle"
        self.failures: list[dict[str, str]] = []
        if self.weights.suffix != ".safetensors":
            self.weights = ROOT / "runtime/paramorph_rt/bundles" / name / "weights.safetensors"
        if not self.weights.is_file():
            self.weights = folder / "weights.safetensors"
        if not self.weights.is_file():
            script = Path(__file__).with_name("random_weights.py")
            self._step("weights", [script, self.weights], args)
        if not any(contender.startswith(ENGINES) for contender in args.contenders):
            return
        if not self.bundle.is_dir():
            export = [ROOT / "export" / "to_onnx.py", "--weights", self.weights]
            export += ["--out-dir", self.bundle, "--shape", *args.shape]
            if targets:
                export += ["--precision", "fp32", "fp16", "--fp32-for-gpus"]
            self._step("export", export, args)
        built = {(e["flavour"], e["compute_capability"]) for e in self._engines()}
        build = [ROOT / "export" / "build_engine.py", "--bundle", self.bundle]
        for flavour, target in targets.items():
            if (flavour, target) not in built:
                command = [*build, "--flavour", flavour, "--target", target]
                self._step(f"engine of {flavour}", command, args)

    def _engines(self) -> list[dict[str, Any]]:
        manifest = self.bundle / "manifest.json"
        return json.loads(manifest.read_text("utf-8"))["engines"] if manifest.is_file() else []

    def _step(self, what: str, command: list[Any], args: argparse.Namespace) -> None:
        failure = run_isolated([sys.executable, *map(str, command)], args.threads, args.timeout)
        if failure:
            self.failures.append({"step": what, "error": failure})


def targets_here(device: str) -> dict[str, str]:
    """What engines are built for: RTX's for all cards, one of which this may be or not."""
    if device == "cpu":
        return {}
    return {
        "tensorrt-rtx": "portable",
        "tensorrt": f"sm{find_gpu().compute_capability.replace('.', '')}",
    }


def smooth_volume(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """(i, j, k) in [0, 1], with structure as large as anatomy has."""
    volume = np.random.default_rng(seed).random([n // 8 for n in shape], np.float32)
    for axis, n in enumerate(shape):
        at = np.linspace(0, volume.shape[axis] - 1, n)
        volume = np.apply_along_axis(
            lambda line, at=at: np.interp(at, np.arange(len(line)), line), axis, volume
        )
    return volume.astype(np.float32)


def measure_network(
    name: str, work: Path, args: argparse.Namespace, network: dict[str, Any], save: Any
) -> None:
    """A row per contender; the first that ran is what the others are compared with.

    Args:
        name: See `--networks`.
        work: For what is not kept.
        args: Of the command.
        network: The network's part of the result, filled here.
        save: Called after every change of it.
    """
    work.mkdir(parents=True)
    home = args.prepared / Path(name).stem if args.prepared else work
    prepared = Prepared(name, home, args, targets_here(args.device))
    network["steps_that_failed"] = prepared.failures
    inputs = work / INPUTS
    np.save(inputs, np.stack([smooth_volume(tuple(args.shape), seed) for seed in (1, 2)]))
    reference: np.ndarray | None = None
    for number, contender in enumerate(args.contenders):
        print(f"{name}: {contender} …", file=sys.stderr)
        folder = work / str(number)
        folder.mkdir()
        task = Task(
            *(contender, args.device, str(prepared.weights), str(prepared.bundle), str(inputs)),
            *(str(folder), args.runs, args.seconds),
        )
        row, displacement = run_contender(task, args)
        if displacement is not None:
            if reference is None:
                reference = displacement
                row["reference"] = True
                network["largest_displacement_vox"] = float(abs(reference).max())
            else:
                row |= differences([reference], [displacement])
        network["rows"].append(row)
        save()


def run_contender(task: Task, args: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray | None]:
    """Its row, and its displacement if it ran."""
    row: dict[str, Any] = {"contender": task.contender}
    before = memory_used_mb()
    script = str(Path(__file__).with_name("gpu_contenders.py"))
    failure = run_isolated(
        [sys.executable, script, json.dumps(asdict(task))], args.threads, args.timeout
    )
    if failure:
        return row | {"error": failure}, None
    report = json.loads((Path(task.folder) / REPORT).read_text(encoding="utf-8"))
    seconds, on_device = report.pop("seconds"), report.pop("device_seconds", None)
    used = report.pop("memory_used_mb")
    row |= report
    row |= {
        "median_ms": statistics.median(seconds) * 1e3,
        "p99_ms": float(np.quantile(seconds, 0.99)) * 1e3,
        "n": len(seconds),
        "memory_mb": None if used is None or before is None else used - before,
        "seconds": seconds,
    }
    if on_device:
        row |= {
            "device_median_ms": statistics.median(on_device) * 1e3,
            "device_p99_ms": float(np.quantile(on_device, 0.99)) * 1e3,
            "device_seconds": on_device,
        }
    return row, np.load(Path(task.folder) / DISPLACEMENT)


def page(result: dict[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    versions = ", ".join(f"{p} {v}" for p, v in result["versions"].items() if v)
    shape = " × ".join(str(n) for n in result["shape"])
    text = (
        f"# {name}\n\nWritten by `benchmarks/gpu.py` from `{name}.json`: {result['gpu']}, "
        f"{result['processor']}, {shape}, commit {result['commit'] or 'unknown'}; {versions}.\n"
    )
    for network in result["networks"]:
        measured = [row for row in network["rows"] if "error" not in row]
        text += f"\n## {network['network']}\n\n"
        if measured:
            text += (
                f"Displacements of up to {network['largest_displacement_vox']:.1f} voxels; "
                f"differences, as lengths, are to {measured[0]['contender']}.\n\n"
            )
        text += markdown_table(measured, COLUMNS)
        missing = [(row["contender"], row["error"]) for row in network["rows"] if "error" in row]
        missing += [(step["step"], step["error"]) for step in network["steps_that_failed"]]
        if missing:
            text += "\nNot measured:\n\n" + "".join(f"- {w}: {why}\n" for w, why in missing)
    return text


def describe_gpu(device: str) -> str:
    if device == "cpu":
        return "no GPU"
    gpu = find_gpu()
    return f"{gpu.name} ({gpu.compute_capability}), driver for CUDA {gpu.driver_cuda}"


def run(args: argparse.Namespace) -> None:
    """Measure; write the JSON and the table, after every contender."""
    gpu = describe_gpu(args.device)  # refuses before the work
    result: dict[str, Any] = {"gpu": gpu, "shape": args.shape, "threads": args.threads}
    result["networks"] = []

    def save() -> Path:
        path = record.write_result(args.name, result, packages=PACKAGES, folder=args.out)
        text = page(json.loads(path.read_text(encoding="utf-8")), path.stem)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        return path

    with tempfile.TemporaryDirectory(dir=args.work) as work:
        for number, name in enumerate(args.networks):
            network = {"network": Path(name).stem, "steps_that_failed": [], "rows": []}
            result["networks"].append(network)
            measure_network(name, Path(work) / str(number), args, network, save)
    path = save()
    print(path.with_suffix(".md").read_text(encoding="utf-8"))
    print(path)


def prepare(args: argparse.Namespace) -> None:
    """Weights, networks and RTX's engine for all cards, without a GPU; says what failed."""
    for name in args.networks:
        folder = args.prepare / Path(name).stem
        folder.mkdir(parents=True, exist_ok=True)
        for failure in Prepared(name, folder, args, {"tensorrt-rtx": "portable"}).failures:
            print(f"{name}, {failure['step']}: {failure['error']}", file=sys.stderr)
        print(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu proves the script alone")
    add("--shape", type=int, nargs=3, default=[160, 160, 96], help="(default: %(default)s)")
    add(
        "--networks",
        nargs="+",
        default=list(NETWORKS),
        help="names of models/weights, paramorph for random weights of the paper's size, or files "
        "of weights (default: %(default)s)",
    )
    on_gpu = [name for name in CONTENDERS if name not in ON_CPU]
    add("--contenders", nargs="+", default=on_gpu, choices=list(CONTENDERS))
    add("--runs", type=int, default=200, help="of each, at most (default: %(default)s)")
    add("--seconds", type=float, default=5, help="of each, about (default: %(default)s)")
    add("--timeout", type=float, default=900, help="s, for each process (default: %(default)s)")
    add("--work", type=Path, help="where exports are kept meanwhile (default: the system's)")
    add("--prepare", type=Path, metavar="DIR", help="export and build into DIR, measure nothing")
    add("--prepared", type=Path, metavar="DIR", help="what --prepare made; what lacks is made")
    add("--out", type=Path, metavar="DIR", help="of the result files (default: results)")
    add("--name", default="gpu", help="of the result files (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    add("--threads", type=int, default=cores, help="of the CPU (default: all)")
    args = parser.parse_args(argv)
    return exit_code("gpu.py", lambda: prepare(args) if args.prepare else run(args))


if __name__ == "__main__":
    sys.exit(main())

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
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmark import OUT, THREADS, Benchmark, option, runs
from contenders import ON_CPU, ON_GPU, Spec, memory_used_mb
from isolated import call_isolated, run_isolated
from paramorph_rt.backends.gpu import find_gpu
from paramorph_rt.bundle import MANIFEST, load_bundle
from paramorph_rt.errors import ParamorphError
from record import BenchmarkError, Result, Row
from tables import differences, failures, markdown_table
from volumes import smooth_volume

ROOT = Path(__file__).parents[1]
RANDOM = "paramorph"  # weights of the paper's size, from a seed
NETWORKS = ("brain-t1-small", RANDOM)
REFINED = ":refined"  # after a model's name: its features and the refinement as one network
PACKAGES = ("onnxruntime-gpu", "tensorrt-rtx-cu13", "tensorrt", "cuda-bindings", "pycuda")
ENGINES = ("onnxruntime", "tensorrt")  # which need a bundle
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
        self.is_refined = name.endswith(REFINED)
        self.bundle = folder / "bundle"
        self.failures: list[dict[str, str]] = []
        self.weights = next(filter(Path.is_file, _weights(name)), folder / "weights.safetensors")
        if not self.weights.is_file():
            script = Path(__file__).with_name("random_weights.py")
            self._step("weights", [script, self.weights], args)
        if not any(contender.startswith(ENGINES) for contender in args.contenders):
            return
        if not self.bundle.is_dir():
            export = [ROOT / "export" / "to_onnx.py", "--out-dir", self.bundle]
            if self.is_refined:
                export += ["--features", self.weights, "--refined"]
            else:
                export += ["--weights", self.weights, "--shape", *args.shape]
            if targets:
                export += ["--precision", "fp32", "fp16"]
                export += [] if self.is_refined else ["--fp32-for-gpus"]
            self._step("export", export, args)
        engines = load_bundle(self.bundle).engines if (self.bundle / MANIFEST).is_file() else ()
        built = {(engine.flavour, engine.compute_capability) for engine in engines}
        build = [ROOT / "export" / "build_engine.py", "--bundle", self.bundle]
        for flavour, target in targets.items():
            if (flavour, target) not in built:
                command = [*build, "--flavour", flavour, "--target", target]
                self._step(f"engine of {flavour}", command, args)

    @property
    def contenders(self) -> tuple[str, ...]:
        """What can run it; a refinement has no PyTorch form."""
        return ENGINES if self.is_refined else ("",)

    def shape(self, wanted: list[int]) -> tuple[int, ...]:
        """Of the volumes; a refinement's are those of its finest level."""
        if self.is_refined and (self.bundle / MANIFEST).is_file():
            return load_bundle(self.bundle).inputs.grid.shape
        return tuple(wanted)

    def _step(self, what: str, command: list[Any], args: argparse.Namespace) -> None:
        failure = run_isolated([sys.executable, *map(str, command)], args.threads, args.timeout)
        if failure:
            self.failures.append({"step": what, "error": failure})


def _weights(name: str) -> tuple[Path, Path]:
    """Where a network's weights may be, unless they are random."""
    model = ROOT / "runtime/paramorph_rt/bundles" / name.removesuffix(REFINED)
    kind = "features" if name.endswith(REFINED) else "weights"
    return Path(name), model / f"{kind}.safetensors"


def check_networks(names: list[str]) -> None:
    """Refuse a name of which there are no weights, before anything is measured.

    Raises:
        BenchmarkError: It is neither a file, nor a shipped model's, nor that of random weights.
    """
    for name in names:
        if name != RANDOM and not any(path.is_file() for path in _weights(name)):
            raise BenchmarkError(
                f"{name}: expected a shipped model, {RANDOM} or a file of weights for --networks, "
                "found none of that name; check its spelling."
            )


def targets_here(device: str) -> dict[str, str]:
    """What engines are built for: RTX's for all cards, one of which this may be or not."""
    if device == "cpu":
        return {}
    return {
        "tensorrt-rtx": "portable",
        "tensorrt": f"sm{find_gpu().compute_capability.replace('.', '')}",
    }


def measure_network(
    name: str, work: Path, args: argparse.Namespace, network: dict[str, Any], save: Any
) -> None:
    """A row per contender; the first that ran is what the others are compared with.

    Args:
        name: See `--networks`.
        work: For files of this run alone.
        args: Of the command.
        network: The network's part of the result, filled here.
        save: Called after every change of it.
    """
    work.mkdir(parents=True)
    home = args.prepared / _folder(name) if args.prepared else work
    prepared = Prepared(name, home, args, targets_here(args.device))
    network["steps_that_failed"] = prepared.failures
    shape = prepared.shape(args.shape)
    network["shape"] = list(shape)
    volumes = np.stack([smooth_volume(shape, seed) for seed in (1, 2)])
    reference: np.ndarray | None = None
    for contender in [c for c in args.contenders if c.startswith(prepared.contenders)]:
        print(f"{name}: {contender} …", file=sys.stderr)
        files = str(prepared.bundle), str(prepared.weights)
        row, displacement = measure(
            Spec(contender, args.threads, *files, args.device), volumes, args
        )
        if displacement is not None:
            if reference is None:
                reference = displacement
                row["reference"] = True
                network["largest_displacement_vox"] = float(abs(reference).max())
            else:
                row |= differences([reference], [displacement])
        network["rows"].append(row)
        save()


def _folder(name: str) -> str:
    return Path(name).stem.replace(":", "-")


def measure(
    spec: Spec, volumes: np.ndarray, args: argparse.Namespace
) -> tuple[Row, np.ndarray | None]:
    """A contender's row, and its displacement if it ran."""
    before = memory_used_mb()
    call = ("contenders:measured", spec, volumes, args.runs, args.seconds)
    try:
        report = call_isolated(*call, threads=args.threads, timeout_s=args.timeout).result
    except ParamorphError as err:
        return {"contender": spec.engine, "error": str(err)}, None
    displacement, used = report.pop("displacement"), report.pop("memory_used_mb")
    row = {"contender": spec.engine, **report, "n": len(report["seconds"])}
    row["memory_mb"] = None if used is None or before is None else used - before
    for kind in ("", "device_"):
        if seconds := report.get(f"{kind}seconds"):
            row[f"{kind}median_ms"] = statistics.median(seconds) * 1e3
            row[f"{kind}p99_ms"] = float(np.quantile(seconds, 0.99)) * 1e3
    return row, displacement


def body(result: Result) -> str:
    """The text of a result's page."""
    text = ""
    for network in result["networks"]:
        measured = [row for row in network["rows"] if "error" not in row]
        shape = " × ".join(map(str, network.get("shape", result["shape"])))
        text += f"\n## {network['network']}\n\nVolumes of {shape}.\n\n"
        if measured:
            text += (
                f"Displacements of up to {network['largest_displacement_vox']:.1f} voxels; "
                f"differences, as lengths, are to {measured[0]['contender']}.\n\n"
            )
        text += markdown_table(measured, COLUMNS)
        steps = [{**step, "contender": step["step"]} for step in network["steps_that_failed"]]
        text += failures([*network["rows"], *steps], "contender")
    return text


def describe_gpu(device: str) -> str:
    if device == "cpu":
        return "no GPU"
    gpu = find_gpu()
    return f"{gpu.name} ({gpu.compute_capability}), driver for CUDA {gpu.driver_cuda}"


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Measure; write the JSON and the page after every contender."""
    check_networks(args.networks)
    if args.prepare:
        prepare(args)
        return
    gpu = describe_gpu(args.device)  # refuses before the work
    result: Row = {"gpu": gpu, "shape": args.shape, "threads": args.threads, "networks": []}

    def save() -> Path:
        return BENCHMARK.write(args.name, result, args.out)

    with tempfile.TemporaryDirectory(dir=args.work) as work:
        for number, name in enumerate(args.networks):
            network = {"network": _folder(name), "steps_that_failed": [], "rows": []}
            result["networks"].append(network)
            measure_network(name, Path(work) / str(number), args, network, save)
    yield save()


def prepare(args: argparse.Namespace) -> None:
    """Weights, networks and RTX's engine for all cards, without a GPU; says what failed."""
    for name in args.networks:
        folder = args.prepare / _folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        for failure in Prepared(name, folder, args, {"tensorrt-rtx": "portable"}).failures:
            print(f"{name}, {failure['step']}: {failure['error']}", file=sys.stderr)
        print(folder)


OPTIONS = (
    option("--device", choices=("cuda", "cpu"), default="cuda", help="cpu proves the script"),
    option("--shape", type=int, nargs=3, default=[160, 160, 96]),
    option(
        "--networks",
        nargs="+",
        default=list(NETWORKS),
        help="names of models/weights, paramorph for random weights of the paper's size, files of "
        f"weights, or NAME{REFINED}: a model's features and the refinement as one network, which "
        "has to be prepared where the runtime's dependencies are",
    ),
    option("--contenders", nargs="+", default=list(ON_GPU), choices=[*ON_GPU, *ON_CPU]),
    runs(200, "of each, at most"),
    option("--seconds", type=float, default=5, help="of each, about"),
    option("--timeout", type=float, default=900, help="s, for each process"),
    option("--work", type=Path, help="where exports are meanwhile (default: the system's)"),
    option("--prepare", type=Path, metavar="DIR", help="export and build there, no more"),
    option("--prepared", type=Path, metavar="DIR", help="of --prepare; what lacks is made"),
    OUT,
    THREADS,
)
BENCHMARK = Benchmark(run, body, OPTIONS, packages=PACKAGES)

if __name__ == "__main__":
    BENCHMARK.exit()

"""What 8-bit convolutions give on the CPU: seconds, differences and Dice beside other precisions.

ONNX Runtime quantises the convolutions of a bundle's network after training, calibrated on pairs of
training volumes: weights to 8 bits per channel, activations to 8 bits per tensor. Those of fewer
than eight input channels, and those that predict the displacement, stay as they are. All networks
run in turns, each pair once to warm up.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import paramorph_rt  # noqa: F401  # first: it turns ONNX Runtime's telemetry off

# isort: split
import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from bundles import add_model_option, single_bundle
from paramorph_export.pairs import Pair, pairs_of
from paramorph_export.storage import whole
from paramorph_rt.backends.onnxruntime import OnnxRuntimeBackend
from paramorph_rt.backends.openvino import OpenVinoBackend, has_bf16
from paramorph_rt.errors import exit_code
from record import add_run_options, weights_sha256, write_page, write_result
from tables import differences, markdown_table, origin

FEWEST_CHANNELS = 8
PACKAGES = ("openvino",)
COLUMNS = (
    ("engine", "engine", ""),
    ("precision", "precision", ""),
    ("seconds", "median_seconds", ".2f"),
    ("CPU, s", "median_cpu_seconds", ".2f"),
    ("of fp32's CPU", "cpu_share", ".2f"),
    ("mean difference, voxel", "mean_difference_vox", ".1e"),
    ("p99.9", "p999_difference_vox", ".1e"),
    ("Dice", "dice", ".4f"),
    ("change of Dice", "dice_change", "+.1e"),
)

Row = dict[str, Any]


class Calibration(CalibrationDataReader):
    """Pairs as ONNX Runtime's quantisation asks for them."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = iter(pairs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        pair = next(self._pairs, None)
        if pair is None:
            return None
        prepared = {"moving": pair.prepared.moving, "fixed": pair.prepared.fixed}
        return {name: volume[np.newaxis, np.newaxis] for name, volume in prepared.items()}


def quantised(network: Path, pairs: Sequence[Pair], out: Path) -> int:
    """Write the 8-bit network; returns how many convolutions of it have 8 bits."""
    graph = onnx.load(network).graph
    weights = {tensor.name: tensor.dims for tensor in graph.initializer}
    convolutions = {
        node.name: weights[node.input[1]] for node in graph.node if node.op_type == "Conv"
    }
    kept = [name for name, (o, i, *_) in convolutions.items() if i < FEWEST_CHANNELS or o == 3]
    quantize_static(
        network,
        out,
        Calibration(pairs),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        nodes_to_exclude=kept,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return len(convolutions) - len(kept)


def backends(network: Path, in_8_bits: Path, threads: int) -> Iterator[tuple[str, str, Any]]:
    """Engine, precision, and the loaded network; float32 first."""
    yield "onnxruntime", "fp32", OnnxRuntimeBackend(network, threads)
    yield "onnxruntime", "int8", OnnxRuntimeBackend(in_8_bits, threads)
    yield "openvino", "fp32", OpenVinoBackend(network, threads)
    yield "openvino", "int8", OpenVinoBackend(in_8_bits, threads)
    if has_bf16():
        yield "openvino", "bf16", OpenVinoBackend(network, threads, "bf16")


def measure(
    loaded: Sequence[tuple[str, str, Any]], pairs: Sequence[Pair], sampling: str, runs: int
) -> list[Row]:
    """A row per engine and precision, differences and shares to its own float32."""
    found = {key[:2]: [] for key in loaded}
    took: dict[tuple[str, str], list[tuple[float, float]]] = {key[:2]: [] for key in loaded}
    for turn in range(runs + 1):
        for pair in pairs:
            for engine, precision, network in loaded:
                start, cpu = time.perf_counter(), time.process_time()
                displacement = network.run(pair.prepared.moving, pair.prepared.fixed)
                spent = time.perf_counter() - start, time.process_time() - cpu
                if turn == 0:
                    found[engine, precision].append(displacement)
                else:
                    took[engine, precision].append(spent)
    rows = []
    for (engine, precision), each in found.items():
        reference = found[engine, "fp32"]
        dice, before = (
            [pair.dice(u, sampling) for pair, u in zip(pairs, fields, strict=True)]
            for fields in (each, reference)
        )
        of_fp32 = zip(took[engine, precision], took[engine, "fp32"], strict=True)
        rows.append(
            {
                "engine": engine,
                "precision": precision,
                "median_seconds": statistics.median(s for s, _ in took[engine, precision]),
                "median_cpu_seconds": statistics.median(c for _, c in took[engine, precision]),
                "cpu_share": statistics.median(a[1] / b[1] for a, b in of_fp32),
                **(differences(reference, each) if precision != "fp32" else {}),
                "dice": statistics.mean(dice),
                "dice_change": statistics.mean(dice) - statistics.mean(before),
            }
        )
    return rows


def page(result: Mapping[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    return (
        f"# {name}\n\nWritten by `benchmarks/int8.py` from `{name}.json`: {origin(result)}; "
        f"{result['threads']} threads; {result['model']}, {result['convolutions']} convolutions in "
        f"8 bits, calibrated on {result['calibration_pairs']} pairs of training volumes; "
        f"{len(result['pairs'])} validation pairs, {result['runs']} runs of each, in turns.\n\n"
        "Differences of the displacement, as lengths, and shares are to the same engine's fp32.\n\n"
        + markdown_table(result["rows"], COLUMNS)
    )


def run(args: argparse.Namespace) -> None:
    """Quantise, measure; write the JSON and the table."""
    _, bundle = single_bundle(args.model)
    with TemporaryDirectory() as name:
        network = Path(name) / "fp32.onnx"
        onnx.save(whole(bundle.verified_network(bundle.network("fp32"))), network)
        in_8_bits = Path(name) / "int8.onnx"
        calibration = pairs_of(args.calibration, bundle.inputs)[: args.calibration_pairs]
        convolutions = quantised(network, calibration, in_8_bits)
        pairs = pairs_of(args.folder, bundle.inputs)
        loaded = list(backends(network, in_8_bits, args.threads))
        rows = measure(loaded, pairs, bundle.sampling, args.runs)
    content = {
        "threads": args.threads,
        "runs": args.runs,
        "load_average": os.getloadavg(),
        "model": bundle.name,
        "weights_sha256": weights_sha256(bundle),
        "convolutions": convolutions,
        "calibration_pairs": len(calibration),
        "pairs": [pair.name for pair in pairs],
        "rows": rows,
    }
    path = write_result(args.name, content, packages=PACKAGES)
    write_page(path, page(json.loads(path.read_text(encoding="utf-8")), path.stem))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="NAME_*.nii.gz with NAME_labels.nii.gz, to measure on")
    add("calibration", type=Path, help="the same, of training volumes")
    add("--calibration-pairs", type=int, default=4, help="at most (default: %(default)s)")
    add_model_option(parser)
    add_run_options(parser, "int8", runs=3, of="of each pair")
    args = parser.parse_args(argv)
    return exit_code("int8.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

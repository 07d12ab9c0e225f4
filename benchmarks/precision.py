"""What half precision costs in voxels and Dice, and which operators have to stay in float32.

Half graphs are emulated on the CPU: every weight and the output of every operator is rounded
(`paramorph_export.precision.emulated`). "as the CPU runs it" is the half graph itself in ONNX
Runtime, whose CPU kernels compute most of it in float32: what a measurement without the emulation
would show. Differences are those of the displacement, as lengths, to the float32 graph. Where
ModelOpt is installed (`nvidia-modelopt[onnx]`), its own choice is a row, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx.inliner import inline_local_functions

from benchmark import FOLDER, MODEL, Benchmark, option
from bundles import single_bundle, weights_of
from paramorph.checkpoint import load_weights
from paramorph_export.pairs import Pair, pairs_of
from paramorph_export.precision import emulated, stays_float, with_precision
from paramorph_export.trace import onnx_from_network
from paramorph_export.verify import GraphSession
from paramorph_rt.bundle import Bundle
from record import Result, Row
from tables import differences, markdown_table

if TYPE_CHECKING:
    from onnxscript import ir

    Rule = Callable[[ir.Node, ir.DataType], bool]

COLUMNS = (
    ("graph", "graph", ""),
    ("mean, voxel", "mean_difference_vox", ".1e"),
    ("p99.9", "p999_difference_vox", ".1e"),
    ("largest", "max_difference_vox", ".1e"),
    ("largest change of Dice", "dice_change", "+.1e"),
    ("largest number in half", "largest", ".0f"),
)


def _also(*operators: str) -> Rule:
    return lambda node, half: stays_float(node, half) or node.op_type in operators


def _but(*operators: str) -> Rule:
    return lambda node, half: stays_float(node, half) and node.op_type not in operators


def _residual(node: ir.Node, half: ir.DataType) -> bool:
    """Also every sum of two computed values."""
    sum_of_two = node.op_type == "Add" and not any(v.is_initializer() for v in node.inputs)
    return stays_float(node, half) or sum_of_two


#: What stays in float32, by name.
RULES: dict[str, Rule] = {
    "as exported": stays_float,
    "convolutions of one channel in half too": _but("Conv"),
    "sums of one or two channels in half too": _but("Add"),
    "Softmax in float32 too": _also("Softmax"),
    "LayerNormalization in float32 too": _also("LayerNormalization"),
    "GELU and LeakyReLU in float32 too": _also("Gelu", "LeakyRelu"),
    "residual sums in float32 too": _residual,
    "InstanceNormalization in float32 too": _also("InstanceNormalization"),
}


def by_autocast(full: onnx.ModelProto) -> onnx.ModelProto:
    """What AutoCast of NVIDIA's ModelOpt chooses to compute in half, emulated like the others."""
    from modelopt.onnx.autocast import convert_to_mixed_precision

    with TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        onnx.save(inline_local_functions(full), path)  # it knows standard operators alone
        half = convert_to_mixed_precision(str(path), "fp16", keep_io_types=True)
    return emulated(onnx.shape_inference.infer_shapes(half))


def measure(
    model: onnx.ModelProto, expected: Sequence[np.ndarray], pairs: Sequence[Pair], sampling: str
) -> dict[str, float | None]:
    """A half graph on all pairs.

    Args:
        model: The graph; its output `LARGEST` is reported where it has one.
        expected: Displacements (3, i, j, k) of the float32 graph.
        pairs: As many.
        sampling: Convention of the network, for Dice.
    """
    names = [value.name for value in model.graph.output if value.name != "warped"]
    session = GraphSession(model)
    rows, largest = [], []
    for pair, reference in zip(pairs, expected, strict=True):
        output, *peak = session.run(pair.prepared.moving, pair.prepared.fixed, names)
        change = pair.dice(output[0], sampling) - pair.dice(reference, sampling)
        rows.append({**differences([reference], [output[0]]), "dice_change": change})
        largest += [float(value) for value in peak]
    worst = ("p999_difference_vox", "max_difference_vox", "dice_change")
    return {
        "mean_difference_vox": float(np.mean([row["mean_difference_vox"] for row in rows])),
        **{key: max((row[key] for row in rows), key=abs) for key in worst},
        "largest": max(largest, default=None),
    }


def rows_of(bundle: Bundle, pairs: Sequence[Pair], precision: str) -> list[Row]:
    """All graphs of a precision, beside the float32 graph as it is traced."""
    network, _ = load_weights(weights_of(bundle))
    full = onnx_from_network(network, bundle.inputs.grid.shape)
    graphs: dict[str, Callable[[], onnx.ModelProto]] = {}
    if precision == "fp16":  # the CPU has no kernels for the other
        graphs["as the CPU runs it"] = lambda: with_precision(full, precision)
        graphs["attention that adds up in half"] = lambda: emulated(
            with_precision(full, precision), attention_adds_in_half=True
        )
        if find_spec("modelopt") is not None:
            graphs["by ModelOpt AutoCast"] = lambda: by_autocast(full)
    for name, rule in RULES.items():
        graphs[name] = lambda rule=rule: emulated(with_precision(full, precision, rule))
    session = GraphSession(full)
    expected = [
        session.run(p.prepared.moving, p.prepared.fixed, ["displacement"])[0][0] for p in pairs
    ]
    return [
        {"graph": f"{precision}, {name}", **measure(graph(), expected, pairs, bundle.sampling)}
        for name, graph in graphs.items()
    ]


def run(args: argparse.Namespace) -> Row:
    """Measure every graph of each precision."""
    _, bundle = single_bundle(args.model)
    pairs = pairs_of(args.folder, bundle.inputs)
    return {
        "model": bundle.name,
        "shape": list(bundle.inputs.grid.shape),
        "pairs": [pair.name for pair in pairs],
        "rows": [row for p in args.precision for row in rows_of(bundle, pairs, p)],
    }


def body(result: Result) -> str:
    """The text of a result's page."""
    return (
        f"{result['model']} at {' × '.join(map(str, result['shape']))}, {len(result['pairs'])} "
        "real pairs, ONNX Runtime on the CPU.\n\n"
        "Differences of the displacement to the float32 graph, as lengths: the mean over all "
        "pairs, everything else of the worst pair. All rows but the one of the CPU round every "
        "weight and the output of every operator; float16 holds numbers up to 65504.\n\n"
        + markdown_table(result["rows"], COLUMNS)
    )


PRECISIONS = option("--precision", nargs="+", default=["fp16", "bf16"], choices=["fp16", "bf16"])
BENCHMARK = Benchmark(run, body, (FOLDER, MODEL, PRECISIONS))

if __name__ == "__main__":
    BENCHMARK.exit()

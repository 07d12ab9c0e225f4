"""What half precision costs in voxels and Dice, and which operators have to stay in float32.

Half graphs are emulated on the CPU: every weight and the output of every operator is rounded
(`paramorph_export.precision.emulated`). "as the CPU runs it" is the half graph itself in ONNX
Runtime, whose CPU kernels compute most of it in float32: what a measurement without the emulation
would show. Differences are those of the displacement, as lengths, to the float32 graph.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from bundles import add_model_option, single_bundle, traced, weights_of
from paramorph_export.pairs import pairs_of
from paramorph_export.precision import emulated, stays_float, with_precision
from paramorph_export.verify import GraphSession, differences
from paramorph_rt.errors import exit_code
from record import write_result
from report import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxscript import ir

    from paramorph_export.pairs import Pair
    from paramorph_rt.bundle import Bundle

    Rule = Callable[[ir.Node, ir.DataType], bool]

COLUMNS = (
    ("graph", "graph", ""),
    ("mean, voxel", "mean_difference_vox", ".1e"),
    ("p99.9", "p999_difference_vox", ".1e"),
    ("largest", "max_difference_vox", ".1e"),
    ("largest change of Dice", "dice_change", "+.1e"),
    ("largest number in half", "largest", ".0f"),
)


@dataclass(frozen=True)
class Variant:
    """A rule of what stays float32, other than the exported one."""

    name: str
    rule: Rule


def _also(*operators: str) -> Rule:
    return lambda node, half: stays_float(node, half) or node.op_type in operators


def _but(*operators: str) -> Rule:
    return lambda node, half: stays_float(node, half) and node.op_type not in operators


def _residual(node: ir.Node, half: ir.DataType) -> bool:
    """Also every sum of two computed values."""
    sum_of_two = node.op_type == "Add" and not any(v.is_initializer() for v in node.inputs)
    return stays_float(node, half) or sum_of_two


VARIANTS = (
    Variant("as exported", stays_float),
    Variant("convolutions of one channel in half too", _but("Conv")),
    Variant("sums of one or two channels in half too", _but("Add")),
    Variant("Softmax in float32 too", _also("Softmax")),
    Variant("LayerNormalization in float32 too", _also("LayerNormalization")),
    Variant("GELU and LeakyReLU in float32 too", _also("Gelu", "LeakyRelu")),
    Variant("residual sums in float32 too", _residual),
    Variant("InstanceNormalization in float32 too", _also("InstanceNormalization")),
)


def measure(
    model: onnx.ModelProto,
    expected: Sequence[np.ndarray],
    pairs: Sequence[Pair],
    sampling: str,
) -> dict[str, float | None]:
    """A half graph on all pairs.

    Args:
        model: The graph; its output `LARGEST` is reported where it has one.
        expected: Displacements (3, i, j, k) of the float32 graph.
        pairs: As many.
        sampling: Convention of the network, for Dice.
    """
    names = [value.name for value in model.graph.output if value.name != "warped"]
    runner = GraphSession(model)
    rows, largest = [], []
    for pair, reference in zip(pairs, expected, strict=True):
        found, *peak = runner.run(pair.prepared.moving, pair.prepared.fixed, names)
        change = pair.dice(found[0], sampling) - pair.dice(reference, sampling)
        rows.append({**differences(reference, found[0]), "dice_change": change})
        largest += [float(value) for value in peak]
    worst = ("p999_difference_vox", "max_difference_vox", "dice_change")
    return {
        "mean_difference_vox": float(np.mean([row["mean_difference_vox"] for row in rows])),
        **{key: max((row[key] for row in rows), key=abs) for key in worst},
        "largest": max(largest, default=None),
    }


def rows_of(bundle: Bundle, pairs: Sequence[Pair], precision: str) -> list[dict[str, Any]]:
    """All variants of a precision, beside the float32 graph of the bundle."""
    full = traced(bundle, weights_of(bundle))
    runner = GraphSession(full)
    expected = [
        runner.run(p.prepared.moving, p.prepared.fixed, ["displacement"])[0][0] for p in pairs
    ]
    rows = []
    if precision == "fp16":  # the CPU has no kernels for the other
        half = with_precision(full, precision)
        found = measure(half, expected, pairs, bundle.sampling)
        rows.append({"graph": "fp16, as the CPU runs it", **found})
        added = emulated(with_precision(full, precision), attention_adds_in_half=True)
        found = measure(added, expected, pairs, bundle.sampling)
        rows.append({"graph": "fp16, attention that adds up in half", **found})
    for variant in VARIANTS:
        half = emulated(with_precision(full, precision, variant.rule))
        found = measure(half, expected, pairs, bundle.sampling)
        rows.append({"graph": f"{precision}, {variant.name}", **found})
    return rows


def table(result: dict[str, Any], name: str) -> str:
    """The Markdown page of a result."""
    return (
        f"# {name}\n\n"
        f"Written by `benchmarks/precision.py` from `{name}.json`: {result['model']} at "
        f"{' × '.join(map(str, result['shape']))}, {len(result['pairs'])} real pairs, ONNX Runtime "
        f"{result['versions']['onnxruntime']} on the CPU, commit {result['commit']}.\n\n"
        "Differences of the displacement to the float32 graph, as lengths: the mean over all "
        "pairs, everything else of the worst pair. All rows but the one of the CPU round every "
        f"weight and the output of every operator; float16 holds numbers up to 65504.\n\n"
        + markdown_table(result["rows"], COLUMNS)
    )


def run(args: argparse.Namespace) -> None:
    """Measure; write the JSON and the table."""
    _, bundle = single_bundle(args.model)
    pairs = pairs_of(args.folder, bundle.inputs)
    path = write_result(
        args.name,
        {
            "model": bundle.name,
            "shape": list(bundle.inputs.grid.shape),
            "pairs": [pair.name for pair in pairs],
            "rows": [row for p in args.precision for row in rows_of(bundle, pairs, p)],
        },
    )
    page = table(json.loads(path.read_text(encoding="utf-8")), path.stem)
    path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)
    print(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("folder", type=Path, help="NAME_*.nii.gz with NAME_labels.nii.gz")
    add_model_option(parser)
    add("--precision", nargs="+", default=["fp16", "bf16"], choices=["fp16", "bf16"])
    add("--name", default="precision", help="of the result files (default: %(default)s)")
    args = parser.parse_args()
    return exit_code("precision.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())

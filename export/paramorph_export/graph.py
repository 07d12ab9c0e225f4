"""Rewrites of graphs for CPUs and for the compilers of GPUs: the same results, a measured gain.

Gains on GPUs are those of TensorRT for RTX 1.7 building for an RTX 3080
(`benchmarks/results/engines.md`), gains on CPUs those of ONNX Runtime 1.32 on two cores
(`benchmarks/results/settled/slabs.md`).
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)
from onnxscript import ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase, RewriteRuleSet

from paramorph.windows import MASKED, MERGE_ORDER, merge_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx

#: Volumes of features beyond this many elements, 240 MB in half, are not held whole. Smaller pieces
#: do not help: the compiler then keeps more of them at a time.
LARGEST_NUMBERS = 120_000_000
#: On a CPU they are written to memory and read again unless they are small: 32 MB in float32.
LARGEST_ON_CPU = 8_000_000

_LARGEST_CONSTANT = 1 << 26  # elements; larger ones are not compared with one another


class Rewrite(RewriteRuleClassBase):
    """What a graph has in place of a pattern.

    Args:
        graph: As it is before this rewrite.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()


class WideFeaturesInSlabs(Rewrite):
    """The widened features of a NeXt block, 16 times as many as others, slab by slab.

    Those of two volumes of 160×160×96 are 472 million elements at half resolution; nothing needs
    all of them at a time. 1162 → 511 MB of activations.

    Args:
        graph: As for all.
        largest: How many elements of them may be held at a time.
    """

    def __init__(self, graph: ir.Graph, largest: int | None = None) -> None:
        super().__init__(graph)
        self._largest = LARGEST_NUMBERS if largest is None else largest

    def pattern(self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
        wide = op.Conv(x, w1, b1, _outputs=["wide"])
        return op.Conv(op.Gelu(wide), w2, b2, _outputs=["narrow"])

    def check(
        self, context: Any, w1: ir.Value, w2: ir.Value, wide: ir.Value, **_: Any
    ) -> MatchResult:
        result = MatchResult()
        if not _is_beyond(self._largest, wide):
            result.fail("small enough")
        elif any(tuple(w.shape[2:]) != (1, 1, 1) for w in (w1, w2)):
            result.fail("not pointwise")
        return result

    def rewrite(
        self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, wide: ir.Value, narrow: ir.Value
    ) -> ir.Value:
        depth, numbers, most = wide.shape[2], _numbers(wide), self._largest
        fits = (n for n in range(2, depth + 1) if depth % n == 0 and numbers <= n * most)
        count = next(fits, depth)
        expand, compress = wide.producer().attributes, narrow.producer().attributes
        slabs = op.Split(x, axis=2, num_outputs=count, _outputs=count)
        done = [
            op.Conv(op.Gelu(op.Conv(slab, w1, b1, **expand)), w2, b2, **compress) for slab in slabs
        ]
        return op.Concat(*done, axis=2)


class WideJoinSplit(Rewrite):
    """The convolution of two joined volumes as the sum of two convolutions: nothing is joined.

    570 → 511 MB of activations.
    """

    def pattern(self, op: Any, a: Any, b: Any, w: Any) -> Any:
        joined = op.Concat(a, b, axis=1, _outputs=["joined"])
        return op.Conv(joined, w, _outputs=["convolved"])

    def check(self, context: Any, joined: ir.Value, **_: Any) -> MatchResult:
        return (
            MatchResult()
            if _is_beyond(LARGEST_NUMBERS, joined)
            else MatchResult().fail("small enough")
        )

    def rewrite(
        self, op: Any, a: ir.Value, b: ir.Value, w: ir.Value, convolved: ir.Value, **_: Any
    ) -> ir.Value:
        attributes = convolved.producer().attributes
        weights = np.split(w.const_value.numpy(), [a.shape[1]], axis=1)
        of_a, of_b = (op.Constant(value=ir.tensor(np.ascontiguousarray(part))) for part in weights)
        return op.Add(op.Conv(a, of_a, **attributes), op.Conv(b, of_b, **attributes))


class MaskOfOneWindowInBias(Rewrite):
    """The mask of a window that holds the whole volume, added to the position bias beforehand.

    Shifted blocks of that scale share their kernels with the others then: 0.2 MB less in the engine
    of 160×160×96.
    """

    def pattern(self, op: Any, logits: Any, bias: Any, mask: Any) -> Any:
        return op.Add(op.Add(logits, bias), mask)

    def check(self, context: Any, bias: ir.Value, mask: ir.Value, **_: Any) -> MatchResult:
        result = MatchResult()
        if not (bias.is_initializer() and mask.is_initializer()):
            result.fail("no constants")
        elif len(bias.shape) != 3 or tuple(mask.shape) != (1, 1, *bias.shape[1:]):
            result.fail("several windows")
        return result

    def rewrite(self, op: Any, logits: ir.Value, bias: ir.Value, mask: ir.Value) -> ir.Value:
        both = bias.const_value.numpy() + mask.const_value.numpy()[0]
        return op.Add(logits, _constant(op, both))


class PositionBiasesFromTable(Rewrite):
    """Position biases looked up by relative position, those of all blocks in one kernel.

    Spread over all pairs of 75 slots they are 14 times as large: 0.8 MB more in the engine of
    160×160×96. Where a mask was added to them, a last column of the table holds it alone.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        biases = _added_constants(graph, lambda s: len(s) == 3 and s[0] < s[1] == s[2])
        self._parts: dict[str, tuple[slice, slice]] = {}  # rows of the table, of the index
        plain = next((b for b in biases.values() if b.min() > MASKED / 2), None)
        if plain is None:
            return
        columns, of_pair = _distinct(plain.reshape(len(plain), -1), axis=1)
        of_pair, last = of_pair.reshape(plain.shape[1:]), columns.shape[1]
        tables: list[np.ndarray] = []
        indices = [of_pair]
        for name, bias in biases.items():
            hidden = (bias < MASKED / 2).all(axis=0)
            table = np.full((len(bias), last + 1), MASKED, np.float32)
            table[:, of_pair[~hidden]] = bias[:, ~hidden]
            index = np.where(hidden, last, of_pair)
            if not np.array_equal(table[:, index][:, ~hidden], bias[:, ~hidden]):
                continue  # of other relative positions
            known = [n for n, other in enumerate(indices) if np.array_equal(index, other)]
            if not known:
                known = [len(indices)]
                indices.append(index)
            row, place = sum(map(len, tables)), known[0] * len(index)
            self._parts[name] = slice(row, row + len(bias)), slice(place, place + len(index))
            tables.append(table)
        self._table, self._index = np.concatenate(tables), np.concatenate(indices)

    def pattern(self, op: Any, logits: Any, bias: Any) -> Any:
        return op.Add(logits, bias)

    def check(self, context: Any, bias: ir.Value, **_: Any) -> MatchResult:
        return MatchResult() if bias.name in self._parts else MatchResult().fail("no bias")

    def rewrite(self, op: Any, logits: ir.Value, bias: ir.Value) -> ir.Value:
        biases = op.Gather(_constant(op, self._table), _constant(op, self._index), axis=1)
        return op.Add(logits, _part(op, biases, *self._parts[bias.name]))


class ShiftMasksAsPatterns(Rewrite):
    """Attention masks as the few patterns that their windows share, looked up in one kernel.

    512 windows at 1/4 of 160×160×96 have 8, and the coarser scales the same. 6 MB less in the
    engine.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        masks = _added_constants(graph, lambda s: len(s) == 4 and s[0] > 1 == s[1])
        masks = {name: m for name, m in masks.items() if np.isin(m, (0, MASKED)).all()}
        self._parts: dict[str, slice] = {}
        if not masks:
            return
        for name, mask in masks.items():
            start = sum(p.stop - p.start for p in self._parts.values())
            self._parts[name] = slice(start, start + len(mask))
        hidden = np.concatenate(list(masks.values())) == MASKED
        self._patterns, self._of_window = _distinct(hidden, axis=0)

    def pattern(self, op: Any, logits: Any, mask: Any) -> Any:
        return op.Add(logits, mask)

    def check(self, context: Any, mask: ir.Value, **_: Any) -> MatchResult:
        return MatchResult() if mask.name in self._parts else MatchResult().fail("no mask")

    def rewrite(self, op: Any, logits: ir.Value, mask: ir.Value) -> ir.Value:
        hidden = op.Gather(_constant(op, self._patterns), _constant(op, self._of_window), axis=0)
        nothing, masked = (_constant(op, np.float32(n)) for n in (0, MASKED))
        masks = op.Where(hidden, masked, nothing)
        return op.Add(logits, _part(op, masks, self._parts[mask.name]))


class PatchMergingAsTransposition(Rewrite):
    """Patch merging without a table: its eight neighbours in C order, and the weights with them.

    0.2 MB less in the engine.
    """

    def pattern(
        self, op: Any, x: Any, table: Any, sizes: Any, scale: Any, bias: Any, w: Any
    ) -> Any:
        merged = op.Reshape(op.Gather(x, table, axis=1), sizes)
        normed = op.LayerNormalization(merged, scale, bias, _outputs=["normed"])
        return op.MatMul(normed, w)

    def check(self, context: Any, x: ir.Value, table: ir.Value, **_: Any) -> MatchResult:
        result = MatchResult()
        if not table.is_initializer() or self._size(table) is None:
            result.fail("no table of patch merging")
        return result

    def rewrite(
        self,
        op: Any,
        x: ir.Value,
        table: ir.Value,
        scale: ir.Value,
        bias: ir.Value,
        w: ir.Value,
        normed: ir.Value,
        **_: Any,
    ) -> ir.Value:
        (d, h, width), (batch, _, channels) = self._size(table), x.shape
        order = [MERGE_ORDER.index(offset) for offset in itertools.product((0, 1), repeat=3)]
        cut = np.array([batch, d // 2, 2, h // 2, 2, width // 2, 2, channels])
        x = op.Transpose(op.Reshape(x, _constant(op, cut)), perm=[0, 1, 3, 5, 2, 4, 6, 7])
        x = op.Reshape(x, _constant(op, np.array([batch, -1, 8 * channels])))
        scale, bias, w = (
            _constant(op, v.const_value.numpy().reshape(8, channels, -1)[order].reshape(v.shape))
            for v in (scale, bias, w)
        )
        return op.MatMul(op.LayerNormalization(x, scale, bias, **normed.producer().attributes), w)

    @staticmethod
    def _size(table: ir.Value) -> tuple[int, int, int] | None:
        """The volume that a table merges, if it is such a table."""
        numbers = table.const_value.numpy()
        if numbers.ndim != 1 or len(numbers) % 8:
            return None
        plane, row = (int(numbers[MERGE_ORDER.index(o)]) for o in ((1, 0, 0), (0, 1, 0)))
        if row < 2 or plane % row or len(numbers) % plane:
            return None
        size = len(numbers) // plane, plane // row, row
        if any(n % 2 for n in size):
            return None
        expected = merge_table(size, torch.device("cpu")).numpy()
        return size if np.array_equal(numbers, expected) else None


class RepeatedUpsamplingAsProducts(Rewrite):
    """Trilinear doubling as one matrix product per axis, in networks of several passes.

    The compiler computes which voxels each result comes from in the kernel that uses it; when the
    same doubling occurs twice, it stores those indices, eight per element, as tensors instead.
    Two passes at 96×128×96: 5.89 GB → 331 MB of activations. A single pass needs less as it is.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        shapes = [tuple(n.inputs[0].shape) for n in graph if n.op_type == "Resize"]
        self._repeated = {shape for shape in shapes if shapes.count(shape) > 1}

    def pattern(self, op: Any, x: Any, scales: Any) -> Any:
        return op.Resize(x, None, scales, mode="linear", _outputs=["doubled"])

    def check(self, context: Any, x: ir.Value, scales: ir.Value, **_: Any) -> MatchResult:
        result = MatchResult()
        if tuple(x.shape) not in self._repeated:
            result.fail("not repeated")
        elif list(scales.const_value.numpy()) != [1, 1, 2, 2, 2]:
            result.fail("no doubling")
        return result

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> ir.Value:
        _, channels, d, h, w = x.shape
        x = op.Transpose(x, perm=[0, 2, 3, 4, 1])
        for n, shape in (
            (d, (1, d, h * w * channels)),
            (h, (2 * d, h, w * channels)),
            (w, (4 * d * h, w, channels)),
        ):
            sizes = op.Constant(value=ir.tensor(np.array(shape)))
            doubling = op.Constant(value=ir.tensor(doubling_matrix(n)))
            x = op.MatMul(doubling, op.Reshape(x, sizes))
        sizes = op.Constant(value=ir.tensor(np.array([1, 2 * d, 2 * h, 2 * w, channels])))
        return op.Transpose(op.Reshape(x, sizes), perm=[0, 4, 1, 2, 3])


#: All for GPUs.
REWRITES: tuple[type[Rewrite], ...] = (
    WideFeaturesInSlabs,
    WideJoinSplit,
    MaskOfOneWindowInBias,
    PositionBiasesFromTable,
    ShiftMasksAsPatterns,
    PatchMergingAsTransposition,
    RepeatedUpsamplingAsProducts,
)


def for_cpus(model: onnx.ModelProto, largest: int = LARGEST_ON_CPU) -> onnx.ModelProto:
    """The graph with its wide features in slabs that stay in a CPU's cache.

    At the paper's size ONNX Runtime takes 2.3 instead of 5.5 GB and a fifth less CPU time.

    Args:
        model: In float32, from `onnx_from_network`; stays as it is.
        largest: As for `WideFeaturesInSlabs`.
    """
    whole = ir.from_proto(model)
    RewriteRuleSet([WideFeaturesInSlabs.rule(whole.graph, largest)]).apply_to_model(whole)
    ShapeInferencePass()(whole)
    return ir.to_proto(whole)


def rewrite_for_gpus(model: ir.Model, rewrites: Sequence[type[Rewrite]] = REWRITES) -> None:
    """Apply rewrites one after another, in place.

    Args:
        model: In float32, traced and folded; every value knows its static shape.
        rewrites: Which.
    """
    for rewrite in rewrites:
        RewriteRuleSet([rewrite.rule(model.graph)]).apply_to_model(model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DeduplicateInitializersPass(size_limit=_LARGEST_CONSTANT)(model)
    CommonSubexpressionEliminationPass()(model)  # one lookup for all blocks
    RemoveUnusedNodesPass()(model)
    ShapeInferencePass()(model)


def doubling_matrix(n: int) -> np.ndarray:
    """The matrix (2n, n) of linear interpolation between the centres of n voxels."""
    at = np.clip((np.arange(2 * n) - 0.5) / 2, 0, n - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(n)), 0).astype(np.float32)


def _constant(op: Any, array: np.ndarray) -> ir.Value:
    return op.Constant(value=ir.tensor(np.ascontiguousarray(array)))


def _part(op: Any, whole: ir.Value, *parts: slice) -> ir.Value:
    """Of the first axes of a tensor."""
    starts, stops = (np.array([getattr(p, end) for p in parts]) for end in ("start", "stop"))
    axes = np.arange(len(parts))
    return op.Slice(whole, *(_constant(op, numbers) for numbers in (starts, stops, axes)))


def _added_constants(
    graph: ir.Graph, of_shape: Callable[[tuple[int, ...]], bool]
) -> dict[str, np.ndarray]:
    """What `Add` nodes add that is a constant of such a shape, by name."""
    added = [node.inputs[1] for node in graph if node.op_type == "Add"]
    return {
        value.name: value.const_value.numpy()
        for value in added
        if value.is_initializer() and of_shape(tuple(value.shape))
    }


def _distinct(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct slices in the order in which they occur first, and the number of each slice."""
    _, first, number = np.unique(array, axis=axis, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return np.take(array, first[order], axis), np.argsort(order)[number.reshape(-1)]


def _is_beyond(limit: int, value: ir.Value) -> bool:
    return value.shape is not None and _numbers(value) > limit  # new ones have no shape


def _numbers(value: ir.Value) -> int:
    return int(np.prod(value.shape))

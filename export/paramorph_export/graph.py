"""Rewrites of half graphs for the compilers of GPUs: each computes the same, and says its gain.

Gains are those of TensorRT for RTX 1.7 building for an RTX 3080 (`benchmarks/engines.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx_ir.passes.common import (
    DeduplicateInitializersPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)
from onnxscript import ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase, RewriteRuleSet

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Volumes of features beyond this many numbers, 200 MB in half, are not kept whole. Smaller pieces
#: do not help: the compiler then keeps more of them at a time.
LARGEST_NUMBERS = 100_000_000

_LARGEST_CONSTANT = 1 << 26  # numbers; larger ones are not compared with one another


class Rewrite(RewriteRuleClassBase):
    """What a graph has in place of a pattern.

    Args:
        graph: As it is before any rewrite.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()


class WideFeaturesInSlabs(Rewrite):
    """The widened features of a NeXt block, 16 times as many as others, slab by slab.

    Those of two volumes of 160×160×96 are 472 million numbers at half resolution; nothing needs
    all of them at a time. 1155 → 511 MB of activations.
    """

    def pattern(self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
        wide = op.Conv(x, w1, b1, _outputs=["wide"])
        return op.Conv(op.Gelu(wide), w2, b2, _outputs=["narrow"])

    def check(
        self, context: Any, w1: ir.Value, w2: ir.Value, wide: ir.Value, **_: Any
    ) -> MatchResult:
        result = MatchResult()
        if not _is_large(wide):
            result.fail("small enough")
        elif any(tuple(w.shape[2:]) != (1, 1, 1) for w in (w1, w2)):
            result.fail("not pointwise")
        return result

    def rewrite(
        self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, wide: ir.Value, narrow: ir.Value
    ) -> ir.Value:
        depth, numbers = wide.shape[2], _numbers(wide)
        fits = (n for n in range(2, depth + 1) if depth % n == 0 and numbers <= n * LARGEST_NUMBERS)
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
        return MatchResult() if _is_large(joined) else MatchResult().fail("small enough")

    def rewrite(
        self, op: Any, a: ir.Value, b: ir.Value, w: ir.Value, convolved: ir.Value, **_: Any
    ) -> ir.Value:
        attributes = convolved.producer().attributes
        weights = np.split(w.const_value.numpy(), [a.shape[1]], axis=1)
        of_a, of_b = (op.Constant(value=ir.tensor(np.ascontiguousarray(part))) for part in weights)
        return op.Add(op.Conv(a, of_a, **attributes), op.Conv(b, of_b, **attributes))


class ShiftMasksAsPatterns(Rewrite):
    """An attention mask as the few patterns that its windows share, looked up by window.

    512 windows at 1/4 of 160×160×96 have 8. 6 MB less in the engine.
    """

    def pattern(self, op: Any, logits: Any, mask: Any) -> Any:
        return op.Add(logits, mask, _outputs=["masked"])

    def check(self, context: Any, mask: ir.Value, **_: Any) -> MatchResult:
        windows = mask.shape[0] if mask.is_initializer() and len(mask.shape) == 4 else 0
        return MatchResult() if windows > 8 else MatchResult().fail("no large mask")

    def rewrite(self, op: Any, logits: ir.Value, mask: ir.Value, **_: Any) -> ir.Value:
        patterns, of_window = np.unique(mask.const_value.numpy(), axis=0, return_inverse=True)
        tables = (patterns, of_window.reshape(-1))
        return op.Add(logits, op.Gather(*(op.Constant(value=ir.tensor(t)) for t in tables), axis=0))


class RepeatedUpsamplingAsProducts(Rewrite):
    """Trilinear doubling as one matrix product per axis, in networks of several passes.

    The compiler computes which voxels each result comes from in the kernel that uses it; when the
    same doubling occurs twice, it keeps those places, eight for every number, as tensors instead.
    Two passes at 96×128×96: 5.88 GB → 329 MB of activations. A single pass needs less as it is.
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


#: All of them.
REWRITES: tuple[type[Rewrite], ...] = (
    WideFeaturesInSlabs,
    WideJoinSplit,
    ShiftMasksAsPatterns,
    RepeatedUpsamplingAsProducts,
)


def rewrite_for_gpus(model: ir.Model, rewrites: Sequence[type[Rewrite]] = REWRITES) -> None:
    """Apply rewrites, in place.

    Args:
        model: In float32, traced and folded; every value knows its static shape.
        rewrites: Which.
    """
    rules = [rewrite.rule(model.graph) for rewrite in rewrites]
    if rules:
        RewriteRuleSet(rules).apply_to_model(model)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DeduplicateInitializersPass(size_limit=_LARGEST_CONSTANT)(model)
    RemoveUnusedNodesPass()(model)
    ShapeInferencePass()(model)


def doubling_matrix(n: int) -> np.ndarray:
    """The matrix (2n, n) of linear interpolation between the centres of n voxels."""
    at = np.clip((np.arange(2 * n) - 0.5) / 2, 0, n - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(n)), 0).astype(np.float32)


def _is_large(value: ir.Value) -> bool:
    return value.shape is not None and _numbers(value) > LARGEST_NUMBERS  # new ones have no shape


def _numbers(value: ir.Value) -> int:
    return int(np.prod(value.shape))

"""Rewrites for GPUs of what happens to tokens: biases, masks, patch merging."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from paramorph.windows import MASKED, MERGE_ORDER, merge_table
from paramorph_export.rewrite import Rewrite, array_of, attributes_of, constant, judged

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxscript import ir
    from onnxscript.rewriter import MatchResult


class MaskOfOneWindowInBias(Rewrite):
    """The mask of a window that holds the whole volume, added to the position bias beforehand.

    Shifted blocks of that scale share their kernels with the others then: 0.2 MB less in the engine
    of 160×160×96.
    """

    def pattern(self, op: Any, logits: Any, bias: Any, mask: Any) -> Any:
        return op.Add(op.Add(logits, bias), mask)

    def check(self, context: Any, bias: ir.Value, mask: ir.Value, **_: Any) -> MatchResult:
        constants = bias.is_initializer() and mask.is_initializer()
        alone = constants and len(bias.shape) == 3 and mask.shape == (1, 1, *bias.shape[1:])
        return judged(alone, "several windows")

    def rewrite(self, op: Any, logits: ir.Value, bias: ir.Value, mask: ir.Value) -> ir.Value:
        both = array_of(bias) + array_of(mask)[0]
        return op.Add(logits, constant(op, both))


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
        return judged(bias.name in self._parts, "no bias")

    def rewrite(self, op: Any, logits: ir.Value, bias: ir.Value) -> ir.Value:
        biases = op.Gather(constant(op, self._table), constant(op, self._index), axis=1)
        return op.Add(logits, _part(op, biases, *self._parts[bias.name]))


class ShiftMasksAsPatterns(Rewrite):
    """Attention masks as the few patterns that their windows share, looked up in one kernel.

    512 windows at 1/4 of 160×160×96 have 8, and the coarser scales the same. 6 MB less in the
    engine. Several blocks add the same mask.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        masks = _added_constants(graph, lambda s: len(s) == 4 and s[0] > 1 == s[1])
        masks = {name: m for name, m in masks.items() if np.isin(m, (0, MASKED)).all()}
        self._parts: dict[str, slice] = {}
        if not masks:
            return
        distinct: dict[bytes, tuple[slice, np.ndarray]] = {}
        for name, mask in masks.items():
            start = sum(len(m) for _, m in distinct.values())
            part = slice(start, start + len(mask))
            self._parts[name], _ = distinct.setdefault(mask.tobytes(), (part, mask))
        hidden = np.concatenate([m for _, m in distinct.values()]) == MASKED
        self._patterns, self._of_window = _distinct(hidden, axis=0)

    def pattern(self, op: Any, logits: Any, mask: Any) -> Any:
        return op.Add(logits, mask)

    def check(self, context: Any, mask: ir.Value, **_: Any) -> MatchResult:
        return judged(mask.name in self._parts, "no mask")

    def rewrite(self, op: Any, logits: ir.Value, mask: ir.Value) -> ir.Value:
        hidden = op.Gather(constant(op, self._patterns), constant(op, self._of_window), axis=0)
        nothing, masked = (constant(op, np.float32(n)) for n in (0, MASKED))
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
        is_table = table.is_initializer() and self._size(table) is not None
        return judged(is_table, "no table of patch merging")

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
        x = op.Transpose(op.Reshape(x, constant(op, cut)), perm=[0, 1, 3, 5, 2, 4, 6, 7])
        x = op.Reshape(x, constant(op, np.array([batch, -1, 8 * channels])))
        scale, bias, w = (
            constant(op, array_of(v).reshape(8, channels, -1)[order].reshape(v.shape))
            for v in (scale, bias, w)
        )
        return op.MatMul(op.LayerNormalization(x, scale, bias, **attributes_of(normed)), w)

    @staticmethod
    def _size(table: ir.Value) -> tuple[int, int, int] | None:
        """The volume that a table merges, if it is such a table."""
        numbers = array_of(table)
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


class TokensFromVolume(Rewrite):
    """Tokens as a volume's channels laid side by side, which they are already: nothing is copied.

    By way of (b, c, n) the compiler writes the volume twice.
    """

    def pattern(self, op: Any, x: Any, sizes: Any) -> Any:
        return op.Transpose(op.Reshape(x, sizes), perm=[0, 2, 1], _outputs=["tokens"])

    def check(self, context: Any, x: ir.Value, tokens: ir.Value, **_: Any) -> MatchResult:
        return judged((len(x.shape), len(tokens.shape)) == (5, 3), "no tokens of a volume")

    def rewrite(self, op: Any, x: ir.Value, tokens: ir.Value, **_: Any) -> ir.Value:
        return op.Reshape(op.Transpose(x, perm=[0, 2, 3, 4, 1]), constant(op, list(tokens.shape)))


class VolumeFromTokens(Rewrite):
    """The way back, in the same way."""

    def pattern(self, op: Any, x: Any, sizes: Any) -> Any:
        return op.Reshape(op.Transpose(x, perm=[0, 2, 1]), sizes, _outputs=["volume"])

    def check(self, context: Any, x: ir.Value, volume: ir.Value, **_: Any) -> MatchResult:
        return judged((len(x.shape), len(volume.shape)) == (3, 5), "no volume of tokens")

    def rewrite(self, op: Any, x: ir.Value, volume: ir.Value, **_: Any) -> ir.Value:
        batch, channels, *size = volume.shape
        last = op.Reshape(x, constant(op, [batch, *size, channels]))
        return op.Transpose(last, perm=[0, 4, 1, 2, 3])


def _part(op: Any, whole: ir.Value, *parts: slice) -> ir.Value:
    """Of the first axes of a tensor."""
    starts, stops = (np.array([getattr(p, end) for p in parts]) for end in ("start", "stop"))
    axes = np.arange(len(parts))
    return op.Slice(whole, *(constant(op, numbers) for numbers in (starts, stops, axes)))


def _added_constants(
    graph: ir.Graph, of_shape: Callable[[tuple[int, ...]], bool]
) -> dict[str, np.ndarray]:
    """What `Add` nodes add that is a constant of such a shape, by name."""
    added = [node.inputs[1] for node in graph if node.op_type == "Add"]
    return {
        value.name: array_of(value)
        for value in added
        if value.is_initializer() and of_shape(tuple(value.shape))
    }


def _distinct(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct slices in the order in which they occur first, and the number of each slice."""
    _, first, number = np.unique(array, axis=axis, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return np.take(array, first[order], axis), np.argsort(order)[number.reshape(-1)]

"""Window attention for GPUs: tokens slot by slot, which its kernel reads and writes as they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paramorph_export.rewrite import Rewrite, array_of, attributes_of, constant, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxscript import ir
    from onnxscript.rewriter import MatchResult

#: Channels of a head for which TensorRT for RTX has attention in one kernel. With fewer it is five
#: kernels, which write its logits and read them four times.
NARROWEST_HEAD = 16
#: Products with zeros that take as long as a launch, 2 µs, on an RTX 3080.
MOST_ZEROS = 30_000_000


@dataclass(frozen=True)
class Heads:
    """Queries, keys or values, by what they come from.

    Attributes:
        tokens: (b, n, c), before their norm.
        norm: Scale, bias and attributes of it.
        rows: Token of the batch, 0 to b·n − 1, in every slot of all b·windows; −1 is padding.
        weights: (c, heads, channels).
    """

    tokens: ir.Value
    norm: tuple[ir.Value, ir.Value, Any]
    rows: np.ndarray
    weights: np.ndarray


class SwapAsGather(Rewrite):
    """Both volumes of a batch in the other order, as one node: part of an order of slots then."""

    def pattern(self, op: Any, x: Any) -> Any:
        first, second = op.Split(x, axis=0, num_outputs=2, _outputs=2)
        return op.Concat(second, first, axis=0)

    def check(self, context: Any, x: ir.Value) -> MatchResult:
        return judged(x.shape[0] == 2, "several volumes each")

    def rewrite(self, op: Any, x: ir.Value) -> ir.Value:
        return op.Gather(x, constant(op, [1, 0]), axis=0)


class AttentionBySlots(Rewrite):
    """The first slots of all windows, then the second ones, …: no head is taken apart or joined.

    Windows and heads are one axis of one stride then, as the kernel of attention wants it. Tokens
    come into that order in the kernel of the norm before, and back in that of the norm behind: a
    block takes seven launches instead of nine. Heads become wide enough by zeros in the weights.
    """

    def pattern(
        self, op: Any, logits: Any, values: Any, sizes: Any, w: Any, bias: Any, back: Any
    ) -> Any:
        attended = op.MatMul(op.Softmax(logits, _outputs=["shares"]), values)
        joined = op.Reshape(op.Transpose(attended, perm=[0, 1, 2, 4, 3, 5]), sizes)
        return op.Gather(op.Add(op.MatMul(joined, w), bias), back, axis=1)

    def check(
        self,
        context: Any,
        logits: ir.Value,
        values: ir.Value,
        w: ir.Value,
        back: ir.Value,
        **_: Any,
    ) -> MatchResult:
        product, added = _sum(logits)
        known = all(value.is_initializer() for value in (w, back, *added))
        parts = _queries_and_keys(product)
        return judged(
            known and parts is not None and all(map(_heads, (*parts, values))),
            "no attention in windows",
        )

    def rewrite(
        self,
        op: Any,
        logits: ir.Value,
        values: ir.Value,
        w: ir.Value,
        bias: ir.Value,
        back: ir.Value,
        shares: ir.Value,
        **_: Any,
    ) -> ir.Value:
        _, batch, windows, heads, slots, channels = values.shape
        product, added = _sum(logits)
        parts = [_heads(part) for part in (*_queries_and_keys(product), values)]
        queries, keys, values = (_projected(op, *part) for part in _with_others(parts))
        logits = op.MatMul(queries, op.Transpose(keys, perm=[0, 1, 3, 2]))
        for term in added:  # (heads, slots, slots) or (windows, 1, slots, slots)
            masks = array_of(term)
            of_all = [masks] * (batch if masks.ndim == 4 else 1)
            logits = op.Add(logits, constant(op, np.concatenate(of_all)))
        attended = op.MatMul(op.Softmax(logits, **attributes_of(shares)), values)
        wide = _widened(array_of(w).reshape(heads, channels, -1), axis=1)
        wide = wide.reshape(-1, wide.shape[2])
        sizes = constant(op, [slots * batch * windows, len(wide)])
        joined = op.Reshape(op.Transpose(attended, perm=[2, 0, 1, 3]), sizes)
        projected = op.Add(op.MatMul(joined, constant(op, wide)), bias)
        window, slot = np.divmod(array_of(back), slots)
        place = (slot * batch + np.arange(batch)[:, None]) * windows + window  # (b, n)
        return op.Gather(projected, constant(op, place), axis=0)


def _sum(value: ir.Value) -> tuple[ir.Value, list[ir.Value]]:
    """What something is added to, and what is added."""
    added: list[ir.Value] = []
    while (node := value.producer()) is not None and node.op_type == "Add":
        value, term = node.inputs
        added.insert(0, term)
    return value, added


def _queries_and_keys(logits: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """What they are a product of."""
    node = logits.producer()
    if node is None or node.op_type != "MatMul":
        return None
    turned = node.inputs[1].producer()
    if turned is None or turned.op_type != "Transpose":
        return None
    return node.inputs[0], turned.inputs[0]


def _heads(value: ir.Value) -> Heads | None:
    """What queries, keys or values (1, b, windows, heads, slots, channels) come from."""
    if value.shape is None or len(value.shape) != 6:
        return None
    _, batch, windows, heads, slots, channels = value.shape
    part, node = 0, value.producer()
    if node is not None and node.op_type == "Split":
        part, node = node.outputs.index(value), node.inputs[0].producer()
    chain = list(_back_from(node, ("Transpose", "Reshape", "MatMul", "Gather")))
    if len(chain) < 4 or list(chain[0].attributes["perm"].as_ints()) != [3, 0, 1, 4, 2, 5]:
        return None
    *_, product, order = chain
    norm = order.inputs[0].producer()
    if norm is not None and norm.op_type == "Pad":
        norm = norm.inputs[0].producer()
    if norm is None or norm.op_type != "LayerNormalization":
        return None
    tokens, batches = norm.inputs[0], np.arange(batch)
    if (swap := tokens.producer()) is not None and swap.op_type == "Gather":
        tokens, batches = swap.inputs[0], array_of(swap.inputs[1])
    _, count, width = tokens.shape
    token = array_of(order.inputs[1]).reshape(windows, slots)
    rows = np.where(token < count, batches[:, None, None] * count + token, -1)
    weights = array_of(product.inputs[1]).reshape(width, -1, heads, channels)[:, part]
    return Heads(
        tokens,
        (*norm.inputs[1:], norm.attributes),
        rows.reshape(-1, slots).T,
        _widened(weights, axis=2),
    )


def _back_from(node: ir.Node | None, kinds: tuple[str, ...]) -> Iterator[ir.Node]:
    """Nodes of such kinds, each the first input of the one before; as far as they are."""
    for kind in kinds:
        if node is None or node.op_type != kind:
            return
        yield node
        node = node.inputs[0].producer()


def _with_others(parts: list[Heads]) -> list[tuple[list[Heads], np.ndarray]]:
    """Tokens that each of queries, keys and values is a product of, and the weights.

    Queries of other tokens than keys and values have a product of their own. Where zeros cost less
    than its launch, all three are products of both tokens beside one another, as one launch: 502 →
    494 of two passes at 96×128×96.
    """
    queries, keys, _ = parts
    zeros = queries.rows.size * sum(part.weights.size for part in parts)
    same = queries.tokens is keys.tokens and np.array_equal(queries.rows, keys.rows)
    if same or zeros > MOST_ZEROS or queries.norm[:2] != keys.norm[:2]:
        return [([part], part.weights) for part in parts]
    nothing = np.zeros_like(queries.weights)
    weights = [(part.weights, nothing)[:: 1 if part is queries else -1] for part in parts]
    return [([queries, keys], np.concatenate(both)) for both in weights]


def _projected(op: Any, sources: list[Heads], weights: np.ndarray) -> ir.Value:
    """Queries, keys or values (b·windows, heads, slots, channels), a view of a product.

    Args:
        op: Makes the nodes.
        sources: Their tokens lie beside one another in a row of the product.
        weights: (c of all of them, heads, channels).
    """
    first = sources[0]
    scale, bias, attributes = first.norm
    slots, windows = first.rows.shape
    width, count, channels = weights.shape
    places: dict[ir.Value, int] = {}  # of tokens, joined
    rows = []
    for source in sources:
        before = sum(t.shape[0] * t.shape[1] for t in places)
        place = places.setdefault(source.tokens, before)
        rows.append(np.where(source.rows < 0, -1, source.rows + place))
    flat = [op.Reshape(t, constant(op, [-1, t.shape[2]])) for t in places]
    whole = flat[0] if len(flat) == 1 else op.Concat(*flat, axis=0)
    row = np.stack(rows, axis=-1).reshape(-1)
    gathered = op.Gather(whole, constant(op, np.maximum(row, 0)), axis=0)
    normed = op.LayerNormalization(gathered, scale, bias, **attributes)
    if (row < 0).any():
        normed = op.Where(constant(op, row[:, None] >= 0), normed, constant(op, np.float32(0)))
    if len(sources) > 1:
        normed = op.Reshape(normed, constant(op, [-1, width]))
    product = op.MatMul(normed, constant(op, weights.reshape(width, -1)))
    sizes = constant(op, [slots, windows, count, channels])
    return op.Transpose(op.Reshape(product, sizes), perm=[1, 2, 0, 3])


def _widened(weights: np.ndarray, axis: int) -> np.ndarray:
    """With zeros for the channels that a head has too few of."""
    pads = [(0, 0)] * weights.ndim
    pads[axis] = (0, max(0, NARROWEST_HEAD - weights.shape[axis]))
    return np.pad(weights, pads)

"""Rewrites of what happens to volumes of features: convolutions, norms, upsampling."""

from __future__ import annotations

from collections import Counter
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
from onnxscript import ir

from paramorph_export.rewrite import (
    Rewrite,
    array_of,
    attributes_of,
    constant,
    judged,
    numbers_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxscript.rewriter import MatchResult

#: Volumes of features beyond this many elements, 240 MB in half, are not held whole. Smaller pieces
#: do not help: the compiler then keeps more of them at a time.
LARGEST_NUMBERS = 120_000_000
#: On a CPU they are written to memory and read again unless they are small: 32 MB in float32.
LARGEST_ON_CPU = 8_000_000
#: The volumes themselves, and what one of them or both become at full size.
FEW_CHANNELS = 2
#: Voxels of a norm up to which a row of them pays.
LONGEST_ROW = 5000
#: Of a norm of more voxels: each element of it adds up the statistics of all parts.
PARTS = 8
#: Of a norm in two steps: so many that the second one is one launch; of 384 rows it is two.
MOST_ROWS = 1024


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
        large = _is_beyond(self._largest, wide)
        return judged(large and _is_pointwise(w1) and _is_pointwise(w2), "small, or not pointwise")

    def rewrite(
        self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, wide: ir.Value, narrow: ir.Value
    ) -> ir.Value:
        depth, numbers, most = wide.shape[2], numbers_in(wide), self._largest
        fits = (n for n in range(2, depth + 1) if depth % n == 0 and numbers <= n * most)
        count = next(fits, depth)
        expand, compress = attributes_of(wide), attributes_of(narrow)
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
        return judged(_is_beyond(LARGEST_NUMBERS, joined), "small enough")

    def rewrite(
        self, op: Any, a: ir.Value, b: ir.Value, w: ir.Value, convolved: ir.Value, **_: Any
    ) -> ir.Value:
        attributes = attributes_of(convolved)
        weights = np.split(array_of(w), [a.shape[1]], axis=1)
        of_a, of_b = (constant(op, part) for part in weights)
        return op.Add(op.Conv(a, of_a, **attributes), op.Conv(b, of_b, **attributes))


class RepeatedUpsamplingInOtherShapes(Rewrite):
    """Trilinear doubling with channels moved into the batch, where it occurs before in its size.

    The compiler computes which voxels each result comes from in the kernel that uses it; when a
    doubling of the same shape occurs twice, as in networks of several passes, it stores those
    indices, eight per element, as tensors instead. Two passes at 96×128×96: 5.89 GB → 211 MB of
    activations.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__(graph)
        seen: Counter[tuple[int, ...]] = Counter()
        self._before: dict[ir.Value, int] = {}  # how many there are of the shape before each
        for node in graph:
            if node.op_type == "Resize":
                shape = tuple(node.inputs[0].shape)
                self._before[node.outputs[0]] = seen[shape]
                seen[shape] += 1

    def pattern(self, op: Any, x: Any, scales: Any) -> Any:
        return op.Resize(x, None, scales, mode="linear", _outputs=["doubled"])

    def check(self, context: Any, x: ir.Value, scales: ir.Value, doubled: ir.Value) -> MatchResult:
        repeated = self._before.get(doubled, 0) > 0 and x.shape[0] == 1 < x.shape[1]
        return judged(
            repeated and list(array_of(scales)) == [1, 1, 2, 2, 2], "the first, or no doubling"
        )

    def rewrite(self, op: Any, x: ir.Value, scales: ir.Value, doubled: ir.Value) -> ir.Value:
        channels, size = x.shape[1], x.shape[2:]
        batches = [n for n in range(channels, 1, -1) if channels % n == 0]
        batch = batches[(self._before[doubled] - 1) % len(batches)]
        moved = op.Reshape(x, constant(op, [batch, channels // batch, *size]))
        found = op.Resize(moved, None, scales, **attributes_of(doubled))
        return op.Reshape(found, constant(op, list(doubled.shape)))


class SkipInConvolution(Rewrite):
    """A pointwise convolution, joined to a volume and convolved, as its input joined to that.

    The network's skip at full size: 24 channels made of two, and 27 · 24 products with each, become
    27 · 3. Its bias, which ends where the volume does, is the third channel's: ones. 10.9 → 10.7 GB
    and 957 → 893 GFLOP at 160×160×96. An odd number of channels the compiler would fill up with a
    volume of zeros that it stores.
    """

    def pattern(self, op: Any, x: Any, few: Any, w1: Any, b1: Any, w2: Any) -> Any:
        joined = op.Concat(x, op.Conv(few, w1, b1, _outputs=["skip"]), axis=1)
        return op.Conv(joined, w2, _outputs=["convolved"])

    def check(self, context: Any, w1: ir.Value, w2: ir.Value, **_: Any) -> MatchResult:
        pays = _is_pointwise(w1) and w2.is_initializer() and w1.shape[1] + 1 < w1.shape[0]
        return judged(pays, "no skip of few channels")

    def rewrite(
        self,
        op: Any,
        x: ir.Value,
        few: ir.Value,
        w1: ir.Value,
        b1: ir.Value,
        w2: ir.Value,
        convolved: ir.Value,
        **_: Any,
    ) -> ir.Value:
        of_x, of_skip = np.split(array_of(w2), [-w1.shape[0]], axis=1)
        into_skip = np.column_stack([array_of(w1)[:, :, 0, 0, 0], array_of(b1)])
        of_few = np.einsum("osdhw,sf->ofdhw", of_skip, into_skip)
        unused = (of_x.shape[1] + of_few.shape[1]) % 2
        of_few = np.pad(of_few, [(0, 0), (0, unused), (0, 0), (0, 0), (0, 0)])
        pads = constant(op, [0, 0, 0, 0, 0, 0, 1 + unused, 0, 0, 0])
        with_ones = op.Pad(few, pads, constant(op, np.float32(1)))
        weights = constant(op, np.concatenate([of_x, of_few], axis=1))
        return op.Conv(op.Concat(x, with_ones, axis=1), weights, **attributes_of(convolved))


class NormScalesInWeights(Rewrite):
    """Scale and bias of a norm in the weights of the pointwise convolution behind it.

    Half rounds once instead of twice, and norms of all weights are alike.
    """

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any, w: Any, b: Any) -> Any:
        normed = op.InstanceNormalization(x, scale, bias, _outputs=["normed"])
        return op.Conv(normed, w, b, _outputs=["convolved"])

    def check(self, context: Any, w: ir.Value, convolved: ir.Value, **_: Any) -> MatchResult:
        single = attributes_of(convolved).get_int("group", 1) == 1
        return judged(single and _is_pointwise(w), "not pointwise")

    def rewrite(
        self,
        op: Any,
        x: ir.Value,
        scale: ir.Value,
        bias: ir.Value,
        w: ir.Value,
        b: ir.Value,
        normed: ir.Value,
        convolved: ir.Value,
    ) -> ir.Value:
        weights, scales = array_of(w), array_of(scale)
        biases = array_of(b) + weights[:, :, 0, 0, 0] @ array_of(bias)
        plain = (constant(op, array) for array in (np.ones_like(scales), np.zeros_like(scales)))
        found = op.InstanceNormalization(x, *plain, **attributes_of(normed))
        weights = weights * scales.reshape(1, -1, 1, 1, 1)
        attributes = attributes_of(convolved)
        return op.Conv(found, constant(op, weights), constant(op, biases), **attributes)


class NarrowBlocksByElements(Rewrite):
    """A NeXt block of one or two channels as arithmetic on elements, all in one kernel.

    Its features, 16 times as wide, are never written: 14.2 → 13.5 GB of traffic at 160×160×96.
    """

    def pattern(self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any) -> Any:
        return op.Conv(op.Gelu(op.Conv(x, w1, b1)), w2, b2)

    def check(self, context: Any, x: ir.Value, w1: ir.Value, w2: ir.Value, **_: Any) -> MatchResult:
        narrow = x.shape[1] <= FEW_CHANNELS and w2.shape[0] <= FEW_CHANNELS
        return judged(narrow and _is_pointwise(w1) and _is_pointwise(w2), "not narrow")

    def rewrite(
        self, op: Any, x: ir.Value, w1: ir.Value, b1: ir.Value, w2: ir.Value, b2: ir.Value
    ) -> ir.Value:
        active, axis = _widened_by_elements(op, x, w1, b1), constant(op, [1])
        found = _column(op, array_of(b2))
        # Each sum goes to its channel by a product: to join them would be a launch.
        for row, channel in zip(array_of(w2), np.eye(w2.shape[0], dtype=np.float32), strict=True):
            total = op.ReduceSum(op.Mul(active, _column(op, row)), axis)
            found = op.Add(op.Mul(total, _column(op, channel)), found)
        return found


class NarrowDownByElements(Rewrite):
    """What widens one or two channels to more, as arithmetic on elements, with its shortcut.

    The shortcut's voxels are further channels of the wide features, so that one launch and one
    convolution do what takes four: 503 → 494 launches of two passes at 96×128×96.
    """

    def pattern(
        self, op: Any, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, y: Any, w3: Any, b3: Any
    ) -> Any:
        main = op.Conv(op.Gelu(op.Conv(x, w1, b1)), w2, b2, _outputs=["main"])
        return op.Add(main, op.Conv(y, w3, b3, _outputs=["shortcut"]))

    def check(
        self, context: Any, x: ir.Value, w1: ir.Value, w2: ir.Value, w3: ir.Value, **_: Any
    ) -> MatchResult:
        pointwise = all(map(_is_pointwise, (w1, w2, w3)))
        return judged(pointwise and max(x.shape[1], w3.shape[1]) <= FEW_CHANNELS, "not narrow")

    def rewrite(
        self,
        op: Any,
        x: ir.Value,
        w1: ir.Value,
        b1: ir.Value,
        w2: ir.Value,
        b2: ir.Value,
        y: ir.Value,
        w3: ir.Value,
        b3: ir.Value,
        main: ir.Value,
        shortcut: ir.Value,
    ) -> ir.Value:
        steps = attributes_of(shortcut).get_ints("strides", [1, 1, 1])
        bounds = ([0, 0, 0], list(y.shape[2:]), [2, 3, 4], list(steps))
        kept = op.Slice(y, *(constant(op, numbers) for numbers in bounds))
        joined = op.Concat(_widened_by_elements(op, x, w1, b1), kept, axis=1)
        weights = np.concatenate([array_of(w2), array_of(w3)], axis=1)
        biases = array_of(b2) + array_of(b3)
        return op.Conv(joined, constant(op, weights), constant(op, biases), **attributes_of(main))


class VolumesAsChannels(Rewrite):
    """The convolution of two volumes of a batch as one of two channels, each by itself.

    The volumes are joined as channels anyway, for another convolution: they are written once. 3.45
    → 3.42 GB of traffic of two passes at 96×128×96.
    """

    def pattern(self, op: Any, both: Any, w: Any) -> Any:
        return op.Conv(both, w, _allow_other_inputs=True, _outputs=["convolved"])

    def check(
        self, context: Any, both: ir.Value, w: ir.Value, convolved: ir.Value, **_: Any
    ) -> MatchResult:
        joined = both.producer()
        if joined is None or joined.op_type != "Concat" or both.shape is None:
            return judged(False, "nothing joined")
        known = all(value.is_initializer() for value in convolved.producer().inputs[1:])
        return judged(known and both.shape[:2] == (2, 1), "no batch of two volumes")

    def rewrite(self, op: Any, both: ir.Value, convolved: ir.Value, **_: Any) -> ir.Value:
        channels = op.Concat(*both.producer().inputs, axis=1)
        given = [array_of(value) for value in convolved.producer().inputs[1:]]
        weights = (constant(op, np.concatenate([array, array])) for array in given)
        attributes = {**attributes_of(convolved), "group": 2}
        found = op.Conv(channels, *weights, **attributes)
        return op.Reshape(found, constant(op, list(convolved.shape)))


class DepthwiseInPairs(Rewrite):
    """A convolution of each channel by itself as one of channels in pairs, half of it zeros.

    One channel each, the compiler pairs with zeros that it stores, a volume of them (289 instead of
    200 MB of engine at 160×160×96), or computes in float32 with casts and norms around it. 14.2 →
    13.2 GB of traffic.
    """

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return op.Conv(x, w, _outputs=["convolved"])

    def check(self, context: Any, x: ir.Value, w: ir.Value, **_: Any) -> MatchResult:
        channels = x.shape[1]
        even = w.is_initializer() and tuple(w.shape[:2]) == (channels, 1) and channels % 2 == 0
        return judged(even and channels > FEW_CHANNELS, "no channels in pairs")

    def rewrite(self, op: Any, x: ir.Value, w: ir.Value, convolved: ir.Value) -> ir.Value:
        channels, _, *size = w.shape
        weights, numbers = np.zeros((channels, 2, *size), np.float32), np.arange(channels)
        weights[numbers, numbers % 2] = array_of(w)[:, 0]
        attributes = {**attributes_of(convolved), "group": channels // 2}
        return op.Conv(x, constant(op, weights), **attributes)


class NormsAsRows(Rewrite):
    """Norms over few voxels as norms of rows, each in one kernel instead of three.

    Those of more voxels have a kernel of their own, which reads channels side by side.
    """

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any) -> Any:
        return op.InstanceNormalization(x, scale, bias, _outputs=["normed"])

    def check(
        self, context: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, **_: Any
    ) -> MatchResult:
        few = x.shape[1] > FEW_CHANNELS and np.prod(x.shape[2:]) <= LONGEST_ROW
        plain = few and (array_of(scale) == 1).all() and not array_of(bias).any()
        return judged(plain, "many voxels, or a scale")

    def rewrite(self, op: Any, x: ir.Value, normed: ir.Value, **_: Any) -> ir.Value:
        batch, channels, *size = x.shape
        length = int(np.prod(size))
        rows = op.Reshape(x, constant(op, [batch, channels, length]))
        plain = (constant(op, make(length, np.float32)) for make in (np.ones, np.zeros))
        epsilon = attributes_of(normed).get_float("epsilon", 1e-5)
        rows = op.LayerNormalization(rows, *plain, axis=-1, epsilon=epsilon)
        return op.Reshape(rows, constant(op, list(x.shape)))


class NormsOfFewChannelsInTwoSteps(Rewrite):
    """Norms of one or two channels by mean and variance of rows, then of all rows together.

    Nothing has to wait for the sum of a whole volume, so two launches do what takes four: 539 → 523
    of two passes at 96×128×96. The variance is that of rows and that between them (Chan, Golub and
    LeVeque 1983), which stays exact where the mean is large.
    """

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any) -> Any:
        return op.InstanceNormalization(x, scale, bias, _outputs=["normed"])

    def check(self, context: Any, x: ir.Value, **_: Any) -> MatchResult:
        return judged(x.shape[1] <= FEW_CHANNELS, "many channels")

    def rewrite(
        self, op: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, normed: ir.Value
    ) -> ir.Value:
        batch, channels, *size = x.shape
        length, of_row, of_rows = int(np.prod(size)), constant(op, [3]), constant(op, [2])
        rows = next(n for n in range(MOST_ROWS, 0, -1) if length % n == 0)
        values = op.Reshape(x, constant(op, [batch, channels, rows, length // rows, 1]))
        means = op.ReduceMean(values, of_row)
        apart = op.Sub(values, means)
        variances = op.ReduceMean(op.Mul(apart, apart), of_row)
        mean = op.ReduceMean(means, of_rows)
        between = op.Sub(means, mean)
        variance = op.ReduceMean(op.Add(op.Mul(between, between), variances), of_rows)
        epsilon = np.float32(attributes_of(normed).get_float("epsilon", 1e-5))
        deviation = op.Sqrt(op.Add(variance, constant(op, epsilon)))
        scale, bias = (constant(op, array_of(v).reshape(1, -1, 1, 1, 1)) for v in (scale, bias))
        return op.Add(op.Mul(op.Div(op.Sub(x, mean), deviation), scale), bias)


class NormsInParts(Rewrite):
    """Norms over some more voxels by mean and variance of parts, added up where they are used.

    A part is a row as of `NormsAsRows`. The kernel that such norms have of their own reads and
    writes voxels side by side, with a transposition before and one behind; this is a launch less:
    501 → 494 of two passes at 96×128×96. The variance is that of `NormsOfFewChannelsInTwoSteps`.
    """

    def pattern(self, op: Any, x: Any, scale: Any, bias: Any) -> Any:
        return op.InstanceNormalization(x, scale, bias, _outputs=["normed"])

    def check(
        self, context: Any, x: ir.Value, scale: ir.Value, bias: ir.Value, **_: Any
    ) -> MatchResult:
        length = np.prod(x.shape[2:])
        fits = LONGEST_ROW < length <= PARTS * LONGEST_ROW and length % PARTS == 0
        plain = (array_of(scale) == 1).all() and not array_of(bias).any()
        return judged(fits and plain and x.shape[1] > FEW_CHANNELS, "another number, or a scale")

    def rewrite(self, op: Any, x: ir.Value, normed: ir.Value, **_: Any) -> ir.Value:
        batch, channels, *_ = x.shape
        of_row, of_parts = constant(op, [3]), constant(op, [batch, channels, PARTS, 1, 1])

        def parts(values: ir.Value) -> list[ir.Value]:
            return op.Split(op.Reshape(values, of_parts), axis=2, num_outputs=PARTS, _outputs=PARTS)

        def average(values: Iterable[ir.Value]) -> ir.Value:
            return op.Div(reduce(op.Add, values), constant(op, np.float32(PARTS)))

        rows = op.Reshape(x, constant(op, [batch, channels, PARTS, -1]))
        means = op.ReduceMean(rows, of_row)
        apart = op.Sub(rows, means)
        variances = op.ReduceMean(op.Mul(apart, apart), of_row)
        means, variances = parts(means), parts(variances)
        mean = average(means)
        between = [op.Sub(part, mean) for part in means]
        variance = average(
            op.Add(op.Mul(b, b), within) for b, within in zip(between, variances, strict=True)
        )
        epsilon = np.float32(attributes_of(normed).get_float("epsilon", 1e-5))
        return op.Div(op.Sub(x, mean), op.Sqrt(op.Add(variance, constant(op, epsilon))))


def _column(op: Any, array: np.ndarray) -> ir.Value:
    """A number for each channel of a volume."""
    return constant(op, array.reshape(1, -1, 1, 1, 1))


def _widened_by_elements(op: Any, x: ir.Value, w: ir.Value, b: ir.Value) -> ir.Value:
    """A pointwise convolution of few channels and its GELU."""
    count = x.shape[1]
    channels = [x] if count == 1 else op.Split(x, axis=1, num_outputs=count, _outputs=count)
    wide = _column(op, array_of(b))
    for channel, weights in zip(channels, array_of(w).swapaxes(0, 1), strict=True):
        wide = op.Add(op.Mul(channel, _column(op, weights)), wide)
    return op.Gelu(wide)


def _is_beyond(limit: int, value: ir.Value) -> bool:
    return value.shape is not None and numbers_in(value) > limit  # new ones have no shape


def _is_pointwise(weight: ir.Value) -> bool:
    return weight.is_initializer() and tuple(weight.shape[2:]) == (1, 1, 1)

"""What a rewrite of a graph is, and what several of them need.

A rewrite that holds for one family of graphs alone says why it pays; the figures are those of
`benchmarks/engines.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnxscript import ir
from onnxscript.rewriter import MatchResult, RewriteRuleClassBase


class Rewrite(RewriteRuleClassBase):
    """What a graph has in place of a pattern.

    Args:
        graph: As it is before this rewrite.
    """

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()


def judged(holds: bool, otherwise: str) -> MatchResult:
    """A match, or none and why."""
    return MatchResult() if holds else MatchResult().fail(otherwise)


def constant(op: Any, array: np.ndarray | np.generic | list[int]) -> ir.Value:
    """An array, or integers, as a constant of the graph."""
    return op.Constant(value=ir.tensor(np.ascontiguousarray(array)))


def array_of(value: ir.Value) -> np.ndarray:
    """The numbers of a constant."""
    return value.const_value.numpy()


def attributes_of(value: ir.Value) -> Any:
    """The attributes of the node that a value comes from."""
    return value.producer().attributes


def numbers_in(value: ir.Value) -> int:
    """How many it holds."""
    return int(np.prod(value.shape))

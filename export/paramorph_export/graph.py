"""Rewrites of graphs for CPUs and for the compilers of GPUs: the same results, a measured gain.

Gains on GPUs are those of TensorRT for RTX 1.7 building for an RTX 3080
(`benchmarks/results/engines.md`), gains on CPUs those of ONNX Runtime 1.32 on two cores
(`benchmarks/results/settled/slabs.md`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)
from onnxscript import ir
from onnxscript.rewriter import RewriteRuleSet

from paramorph_export.attention import AttentionBySlots, SwapAsGather
from paramorph_export.tokens import (
    MaskOfOneWindowInBias,
    PatchMergingAsTransposition,
    PositionBiasesFromTable,
    ShiftMasksAsPatterns,
    TokensFromVolume,
    VolumeFromTokens,
)
from paramorph_export.volumes import (
    LARGEST_ON_CPU,
    DepthwiseInPairs,
    NarrowBlocksByElements,
    NarrowDownByElements,
    NormsAsRows,
    NormScalesInWeights,
    NormsInParts,
    NormsOfFewChannelsInTwoSteps,
    RepeatedUpsamplingInOtherShapes,
    SkipInConvolution,
    VolumesAsChannels,
    WideFeaturesInSlabs,
    WideJoinSplit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from paramorph_export.rewrite import Rewrite

_LARGEST_CONSTANT = 1 << 26  # elements; larger ones are not compared with one another

#: All for GPUs, in their order.
REWRITES: tuple[type[Rewrite], ...] = (
    SkipInConvolution,
    NormScalesInWeights,
    NarrowBlocksByElements,
    NarrowDownByElements,
    VolumesAsChannels,
    WideFeaturesInSlabs,
    WideJoinSplit,
    DepthwiseInPairs,
    NormsAsRows,
    NormsInParts,
    NormsOfFewChannelsInTwoSteps,
    MaskOfOneWindowInBias,
    SwapAsGather,
    AttentionBySlots,
    PositionBiasesFromTable,
    ShiftMasksAsPatterns,
    PatchMergingAsTransposition,
    TokensFromVolume,
    VolumeFromTokens,
    RepeatedUpsamplingInOtherShapes,
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
        RemoveUnusedNodesPass()(model)
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        ShapeInferencePass()(model)
    DeduplicateInitializersPass(size_limit=_LARGEST_CONSTANT)(model)
    CommonSubexpressionEliminationPass()(model)  # one lookup for all blocks
    RemoveUnusedNodesPass()(model)
    ShapeInferencePass()(model)

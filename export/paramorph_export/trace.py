"""The network as an ONNX graph of standard operators and one `GridSample3D` node."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import onnx
import onnxscript.optimizer
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, DeduplicateInitializersPass
from onnxscript import ir, opset20
from torch import nn

from paramorph.config import check_shape
from paramorph.network import ParaMorph
from paramorph.warp import warp
from paramorph.windows import prepare_tables
from paramorph_export.grid_sample import STANDARD_OPSET, TRANSLATION_TABLE, function_definition
from paramorph_rt.bundle.names import INPUTS, OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from paramorph.networks import RegistrationNetwork

#: Constants up to this many elements are folded: the largest weight of the paper's size has 28 M.
_FOLDING_LIMIT = 1 << 26


class RegistrationGraph(nn.Module):
    """What is exported: the displacement, and the moving volume warped by it."""

    def __init__(self, network: RegistrationNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, moving: torch.Tensor, fixed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        displacement = self.network(moving, fixed)
        return displacement, warp(moving, displacement, self.network.config.sampling)


def onnx_from_network(network: RegistrationNetwork, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Trace `network` at volume size `shape` (D, H, W), batch 1.

    Inputs `moving`, `fixed` float32 (1, 1, D, H, W) in [0, 1]; outputs `displacement`
    (1, 3, D, H, W) in voxels and `warped` (1, 1, D, H, W). Everything that depends on weights and
    sizes alone is folded: position biases, scaled query weights, window tables.

    Raises:
        ConfigError: A shape that the network cannot run at.
    """
    shape = check_shape(shape)
    graph = RegistrationGraph(network).eval()
    moving, fixed = torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)
    if isinstance(network, ParaMorph):
        prepare_tables(shape, network.config, moving.device)
    return traced(graph, (moving, fixed), OUTPUTS)


def traced(
    graph: nn.Module, examples: tuple[torch.Tensor, torch.Tensor], outputs: tuple[str, ...]
) -> onnx.ModelProto:
    """The graph of a module of two volumes, in evaluation mode, constants folded."""
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            torch.export.export(graph.eval(), examples),
            (),
            dynamo=True,
            opset_version=STANDARD_OPSET,
            optimize=False,  # its default optimiser folds only small constants
            input_names=INPUTS,
            output_names=outputs,
            custom_translation_table={
                **TRANSLATION_TABLE,
                torch.ops.aten.group_norm.default: _group_norm,
            },
        )
    assert program is not None
    onnxscript.optimizer.optimize(
        program.model, input_size_limit=_FOLDING_LIMIT, output_size_limit=_FOLDING_LIMIT
    )
    # Blocks of one scale look up the same tables and masks: one copy of each in the file.
    DeduplicateInitializersPass(size_limit=_FOLDING_LIMIT)(program.model)
    # Stack traces, a third of the graph: they name folders of whoever exports.
    ClearMetadataAndDocStringPass()(program.model)
    model = ir.to_proto(program.model)
    model.functions.append(function_definition())
    onnx.checker.check_model(model)
    return model


def _group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """One group per channel is instance normalisation: one node instead of five."""
    assert x.shape[1] == num_groups, "ParaMorph normalises each channel by itself"
    return opset20.InstanceNormalization(x, weight, bias, epsilon=eps)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about optional packages and its progress marks."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""Checkpoints of the ParaMorph reference: its names for our parameters, and its weights as ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from paramorph.checkpoint import CheckpointError, check_state, check_tensor
from paramorph.network import ParaMorph
from paramorph_rt.system.files import check_regular

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from paramorph.config import NetworkConfig

#: Entries of a reference checkpoint that its code never uses.
_DEAD = re.compile(
    r"fixed_lwsa\..+|c[12]\..+|moving_lwsa\.(c1|c2|Conv_1x1|fusion[0-3])\..+"
    r"|lwca[1-4]\.transformer\.norm[1-3]\.(weight|bias)"
    r"|up[0-2]\.conv3\..+|up[34]\.conv1\..+"
)

#: Buffers that follow from the window alone; checked, not loaded.
_POSITION_INDEX = re.compile(r".+\.attn\.relative_position_index")

#: Our names, from left to right, in the reference's words.
_REFERENCE_WORDS = (
    (r"encoder\.patch_embedding\.", "moving_lwsa.transformer.patch_embed.proj."),
    (r"encoder\.patch_norm\.", "moving_lwsa.transformer.patch_embed.norm."),
    (r"encoder\.stages\.(\d)\.", r"moving_lwsa.transformer.layers.\1."),
    (r"encoder\.merges\.(\d)\.", r"moving_lwsa.transformer.layers.\1.downsample."),
    (r"encoder\.norms\.(\d)\.", r"moving_lwsa.transformer.norm\1."),
    (r"encoder\.conv_branch\.blocks\.(\d)\.", r"moving_lwsa.conv<\1+1>."),
    (r"encoder\.conv_branch\.downs\.(\d)\.", r"moving_lwsa.down<\1+1>."),
    (r"cross_attentions\.(\d)\.norm\.", r"lwca<\1+1>.transformer.norm0."),
    (r"cross_attentions\.(\d)\.", r"lwca<\1+1>.transformer.layers.0."),
    (r"decoder\.steps\.([34])\.conv1\.conv\.", r"up\1.conv3.0."),
    (r"decoder\.steps\.(\d)\.conv(\d)\.conv\.", r"up\1.conv\2.0."),
    (r"decoder\.head\.", "reg_head.0."),
    (r"long_skips\.block\.", "conv1."),
    (r"long_skips\.down\.", "down1."),
    (r"long_skips\.full\.", "Conv_1x1."),
    (r"\.attention\.bias_table$", ".attn.relative_position_bias_table"),
    (r"\.attention\.", ".attn."),
    (r"\.mlp_in\.", ".mlp.fc1."),
    (r"\.mlp_out\.", ".mlp.fc2."),
    (r"\bdepthwise\.", "dw_conv."),
    (r"\bexpand\.", "expansion."),
)


def reference_name(name: str) -> str:
    """What the reference calls our parameter `name`."""
    for ours, theirs in _REFERENCE_WORDS:
        name = re.sub(ours, theirs, name)
    return re.sub(r"<(\d)\+1>", lambda match: str(int(match[1]) + 1), name)


def read_reference_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state_dict inside a reference checkpoint, names without a `module.` prefix.

    Raises:
        CheckpointError: No file, or one that `torch.load(weights_only=True)` does not accept.
    """
    path = Path(path)
    check_regular(path, "a checkpoint", CheckpointError)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises many kinds, none of its own
        raise CheckpointError(
            f"{path}: expected a PyTorch checkpoint of tensors only, could not read it safely "
            f"({type(err).__name__}); save its state_dict again with torch.save."
        ) from err
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(
            f"{path}: expected a state_dict or {{'state_dict': …}}, got {type(content).__name__} "
            "with other content; save the model's state_dict."
        )
    for name, tensor in state.items():
        check_tensor(name, tensor, path)
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def convert_reference_state(
    state: Mapping[str, Tensor], config: NetworkConfig, source: str | Path = "checkpoint"
) -> dict[str, Tensor]:
    """Our state_dict from the reference's: live entries renamed, documented dead ones dropped.

    Raises:
        CheckpointError: An entry that is unknown, missing or of another shape, by name; or
            position indices of another window.
    """
    network = ParaMorph(config)
    ours = network.state_dict()
    live = {reference_name(name): name for name in ours}
    index = network.encoder.stages[0].blocks[0].attention.bias_index
    tensors = {}
    for name, tensor in state.items():
        if _POSITION_INDEX.fullmatch(name):
            if not torch.equal(tensor.flatten(), index):
                raise CheckpointError(
                    f"{source}: expected {name} of window {config.window}, got that of another "
                    "window; pass the --window the checkpoint was trained with."
                )
        elif name in live or not _DEAD.fullmatch(name):
            tensors[name] = tensor
    check_state(tensors, {theirs: ours[name] for theirs, name in live.items()}, source)
    return {live[name]: tensor for name, tensor in tensors.items()}

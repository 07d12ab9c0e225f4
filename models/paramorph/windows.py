"""Which token goes into which attention window: tables that depend on sizes alone.

A volume of features is a list of tokens in C order of (D, H, W). Zero padding, the cyclic
shift of Swin, the cut into windows and the merging of 2×2×2 neighbours are all reorderings of that
list, so each is one gather with a table that is computed once per size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Int
    from torch import Tensor

    from paramorph.config import NetworkConfig

Size = tuple[int, int, int]

#: Added to the attention between tokens that the cyclic shift brought together from opposite ends.
MASKED = -100.0

#: Order in which patch merging concatenates the eight sub-lattices (offsets along D, H, W).
MERGE_ORDER = (
    (0, 0, 0),
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1, 1, 0),
    (0, 1, 1),
    (1, 0, 1),
    (1, 1, 1),
)


@dataclass(frozen=True)
class WindowLayout:
    """How the tokens of one feature size fall into (shifted) windows.

    Attributes:
        partition: Source token of every place in every window; the number of tokens stands for
            "padding" where `padded`.
        restore: Place, in window order, of every token: the way back.
        padded: Whether some windows hold padding.
        mask: Added to the attention logits, or None without a shift.
        windows: Number of windows.
    """

    partition: Int[Tensor, " windows*slots"]
    restore: Int[Tensor, " tokens"]
    padded: bool
    mask: Float[Tensor, "windows 1 slots slots"] | None
    windows: int

    def to_windows(self, tokens: Float[Tensor, "b tokens c"]) -> Float[Tensor, "b slots c"]:
        """Tokens in window order; padding is zero."""
        if self.padded:
            tokens = torch.nn.functional.pad(tokens, (0, 0, 0, 1))
        return tokens.index_select(1, self.partition)

    def from_windows(self, slots: Float[Tensor, "b slots c"]) -> Float[Tensor, "b tokens c"]:
        """Tokens in volume order again, padding dropped."""
        return slots.index_select(1, self.restore)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached must serve training as well
def window_layout(
    size: Size, config: NetworkConfig, shifted: bool, device: torch.device
) -> WindowLayout:
    """The layout of `size` tokens (D, H, W) in the config's windows, shifted by half or not.

    Each axis is padded at its end up to a multiple of its own window; a size smaller than the
    window is padded too.

    `config.window_return` says how windows become a volume again. `exact`: every token returns to
    where it came from. `reference`: as in the reference code, which on the way back puts the axes
    in the order (D/w, W/w, w, H/w, w, w), so that what attention computed for one token is added to
    another. Weights trained that way need it that way.

    Source:
        Liu et al., Swin Transformer (2021), sec. 3.2, in 3-D.
    """
    window = config.window
    padded_size = [-(-n // w) * w for n, w in zip(size, window, strict=True)]
    shift = [w // 2 if shifted else 0 for w in window]
    tokens = size[0] * size[1] * size[2]

    source = torch.full(padded_size, tokens, device="cpu")
    source[: size[0], : size[1], : size[2]] = _numbered(*size)
    partition = _cut(source.roll([-s for s in shift], (0, 1, 2)), window)

    slots = _numbered(*_counts(padded_size, window), *window)
    order = (0, 3, 1, 4, 2, 5) if config.window_return == "exact" else (0, 2, 4, 1, 3, 5)
    restore = slots.permute(order).reshape(padded_size).roll(shift, (0, 1, 2))
    restore = restore[: size[0], : size[1], : size[2]]
    return WindowLayout(
        partition=partition.flatten().to(device),
        restore=restore.flatten().to(device),
        padded=padded_size != list(size),
        mask=_shift_mask(padded_size, window, shift).to(device) if shifted else None,
        windows=partition.shape[0],
    )


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def merge_table(size: Size, device: torch.device) -> Int[Tensor, " tokens"]:
    """Tokens of `size` so that eight consecutive ones are the neighbours that merging joins."""
    index = _numbered(*size)
    lattices = [index[d::2, h::2, w::2] for d, h, w in MERGE_ORDER]
    return torch.stack(lattices, dim=-1).flatten().to(device)


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def relative_position_index(window: Size) -> Int[Tensor, "slots slots"]:
    """Row of the relative-position bias table for every pair of slots in a window."""
    axes = torch.meshgrid(*[_numbered(w) for w in window], indexing="ij")
    coordinates = torch.stack(axes).flatten(1)  # (3, slots)
    offset = coordinates[:, :, None] - coordinates[:, None, :]
    spans = [2 * w - 1 for w in window]
    d, h, w = (o + s - 1 for o, s in zip(offset, window, strict=True))
    return (d * spans[1] + h) * spans[2] + w


def prepare_tables(shape: Size, config: NetworkConfig, device: torch.device) -> None:
    """Compute all tables that a network of `config` looks up at volume size `shape`.

    A forward pass would do so by itself; a tracer must find them already there, or the making of
    the tables becomes part of its graph.
    """
    size: Size = tuple(n // 4 for n in shape)
    for scale in range(4):
        for shifted in (False, True):
            window_layout(size, config, shifted, device)
        if scale < 3:
            merge_table(size, device)
        size = tuple(n // 2 for n in size)


def _numbered(*shape: int) -> Tensor:
    """0, 1, 2, … in C order. On the CPU whatever the default device is, as tables are cached."""
    return torch.arange(math.prod(shape), device="cpu").reshape(shape)


def _counts(padded_size: Sequence[int], window: Size) -> list[int]:
    return [n // w for n, w in zip(padded_size, window, strict=True)]


def _cut(volume: Tensor, window: Size) -> Tensor:
    """(D, H, W) → (windows, slots), both in C order."""
    counts = _counts(volume.shape, window)
    split = volume.reshape(counts[0], window[0], counts[1], window[1], counts[2], window[2])
    return split.permute(0, 2, 4, 1, 3, 5).reshape(counts[0] * counts[1] * counts[2], -1)


def _shift_mask(padded_size: list[int], window: Size, shift: list[int]) -> Tensor:
    """Nothing between tokens of one region, MASKED between those of different ones."""
    labels = []
    for n, w, s in zip(padded_size, window, shift, strict=True):
        label = torch.zeros(n, dtype=torch.long, device="cpu")
        label[n - w : n - s] = 1
        label[n - s :] = 2
        labels.append(label)
    d, h, w = torch.meshgrid(*labels, indexing="ij")
    region = _cut((d * 3 + h) * 3 + w, window)
    differs = region[:, None, :] != region[:, :, None]
    return differs.float().mul(MASKED)[:, None]

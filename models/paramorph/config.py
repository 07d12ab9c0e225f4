"""Sizes and variants of the network, by name."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from paramorph_rt.errors import ParamorphError

Fusion = Literal["cross", "post"]
Sampling = Literal["exact", "reference"]
WindowReturn = Literal["exact", "reference"]

#: Every axis of a volume must be a multiple of this: five halvings lead to the coarsest scale.
SIZE_MULTIPLE = 32
#: Of an attention window; each attends to each.
MOST_TOKENS = 4096


class ConfigError(ParamorphError, ValueError):
    """A network configuration, or a volume size, that the network cannot be built or run with."""


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that decides which function the weights compute.

    The input size is not part of it: one set of weights runs at any size that is a multiple of 32,
    best at the size it was trained for, which is recorded with the weights.
    """

    embed_dim: int = 96  # channels at 1/4 scale; every other width is a multiple or a fraction
    depths: tuple[int, int, int, int] = (2, 2, 4, 2)  # Swin blocks per stage (1/4 … 1/32)
    heads: tuple[int, int, int, int] = (4, 4, 8, 8)  # attention heads per encoder stage
    cross_heads: int = 4  # attention heads of the cross attention, at every scale
    window: tuple[int, int, int] = (5, 5, 3)  # attention window, tokens per axis (D, H, W)
    mlp_ratio: int = 4  # hidden width of a Swin MLP, times its channels
    expansion: int = 16  # hidden width of a NeXt block, times its channels
    fusion: Fusion = "cross"  # where convolution features enter a stage's output (PMFE)
    drop_path: float = 0.0  # stochastic depth of the last encoder block; linear from 0
    window_return: WindowReturn = "exact"  # way back from windows: paramorph.windows.window_layout
    sampling: Sampling = "exact"  # how `warped` is sampled: see paramorph.warp.SAMPLING
    passes: int = 1  # how often the network runs, each time on the volume warped so far
    smoothing: float = 0.0  # Gaussian over the head's output, standard deviation in voxels; 0: none
    integration_steps: int = 0  # squarings of a stationary velocity; 0: a displacement directly

    def __post_init__(self) -> None:
        widths = [self.embed_dim * 2**stage for stage in range(4)]
        divisors = [*zip(widths, self.heads, strict=True), (self.embed_dim, self.cross_heads)]
        for width, heads in [*divisors, (self.embed_dim, 4)]:
            if heads < 1 or width < 1 or width % heads:
                raise ConfigError(
                    f"network config: expected {width} channels to be a multiple of {heads}; "
                    "choose another embed_dim or number of heads."
                )
        if min(self.window) < 2 or math.prod(self.window) > MOST_TOKENS:
            raise ConfigError(
                f"network config: expected a window of at least 2 tokens per axis and at most "
                f"{MOST_TOKENS} together, got {self.window}; choose another."
            )
        if self.fusion not in ("cross", "post"):
            raise ConfigError(f"network config: expected fusion cross or post, got {self.fusion}.")
        for name in ("sampling", "window_return"):
            if getattr(self, name) not in ("exact", "reference"):
                raise ConfigError(
                    f"network config: expected {name} exact or reference, "
                    f"got {getattr(self, name)}."
                )

        if self.passes < 1 or self.integration_steps < 0 or self.smoothing < 0:
            raise ConfigError(
                "network config: expected at least one pass, and neither integration steps nor "
                f"smoothing below 0, got {self.passes}, {self.integration_steps} and "
                f"{self.smoothing}."
            )
        if self.sampling == "reference" and (self.passes > 1 or self.integration_steps):
            raise ConfigError(
                "network config: expected sampling exact where fields are composed (several passes "
                "or integration steps), got reference, under which a zero field is no identity."
            )

    def with_options(self, **changes: Any) -> NetworkConfig:
        """The same network with some fields replaced."""
        return replace(self, **changes)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; `config_from_dict` reads them back."""
        return _plain(asdict(self))


@dataclass(frozen=True)
class PyramidConfig:
    """Everything that decides which function the weights of a `PyramidNetwork` compute."""

    widths: tuple[int, ...] = (16, 32, 64, 96)  # channels of features at 1/2, 1/4 …
    flow_widths: tuple[int, ...] = (32, 48, 64, 64)  # of what finds the velocity there
    repeats: int = 2  # how often the finest scale does so
    codes: int = 12  # values that a label's code consists of, in training
    squarings: int = 4  # of each velocity

    sampling: ClassVar[Sampling] = "exact"
    kind: ClassVar[str] = "pyramid"

    def __post_init__(self) -> None:
        counts = (*self.widths, *self.flow_widths, self.repeats, self.codes)
        if not 0 < len(self.widths) == len(self.flow_widths) <= 5 or min(counts) < 1:
            raise ConfigError(
                "network config: expected one to five scales with a width of each, and at least "
                f"one channel, repeat and code, got {self}."
            )
        if self.squarings < 0:
            raise ConfigError(
                f"network config: expected squarings from 0 on, got {self.squarings}."
            )

    def as_dict(self) -> dict[str, Any]:
        """As of `NetworkConfig`, with the kind."""
        return {"kind": self.kind, **_plain(asdict(self))}


def config_from_dict(fields: dict[str, Any]) -> NetworkConfig | PyramidConfig:
    """The config that `as_dict` wrote; unknown fields are refused.

    Raises:
        ConfigError: A field that this version does not know.
    """
    values = dict(fields)
    kind = PyramidConfig if values.pop("kind", None) == PyramidConfig.kind else NetworkConfig
    if unknown := set(values) - {f.name for f in dataclasses.fields(kind)}:
        raise ConfigError(
            f"network config: expected fields of this version, got {sorted(unknown)}; "
            "update the toolkit."
        )
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Lists for tuples."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}


#: The named networks: the paper's size, one with about 1/9 of its parameters, one for tests, and
#: pyramids: one of about as much work as the small one, one for tests.
CONFIGS: dict[str, NetworkConfig | PyramidConfig] = {
    "paramorph": NetworkConfig(),
    "paramorph-small": NetworkConfig(embed_dim=32),
    "paramorph-tiny": NetworkConfig(
        embed_dim=8, depths=(2, 2, 2, 2), heads=(2, 2, 2, 2), cross_heads=2, expansion=4
    ),
    "pyramid-small": PyramidConfig(),
    "pyramid-tiny": PyramidConfig(widths=(4, 6, 8), flow_widths=(6, 8, 8), codes=4),
}


def config_named(name: str) -> NetworkConfig | PyramidConfig:
    """The config called `name`.

    Raises:
        ConfigError: No config of that name.
    """
    if name not in CONFIGS:
        raise ConfigError(f"network: expected one of {', '.join(CONFIGS)}, got {name}.")
    return CONFIGS[name]


def check_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`shape` (D, H, W) if the network runs at it.

    Raises:
        ConfigError: Not three axes, or an axis that is not a positive multiple of 32.
    """
    if len(shape) != 3 or any(n < SIZE_MULTIPLE or n % SIZE_MULTIPLE for n in shape):
        raise ConfigError(
            f"network input: expected three sizes that are multiples of {SIZE_MULTIPLE}, "
            f"got {tuple(shape)}; pad or resample the volumes."
        )
    return shape[0], shape[1], shape[2]

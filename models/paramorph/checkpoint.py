"""Weights on disk: safetensors files that say what they are weights of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from paramorph.config import NetworkConfig, PyramidConfig, check_shape, config_from_dict
from paramorph.feature_network import FeatureConfig, FeatureNetwork
from paramorph.networks import RegistrationNetwork, network_of
from paramorph_rt.bundle import GridSpec, check_grid_spec
from paramorph_rt.errors import ParamorphError
from paramorph_rt.system.files import check_regular
from paramorph_rt.system.staging import staged_file

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

METADATA_KEY = "paramorph"
FEATURES_KEY = "paramorph-features"
#: Of the tensor that holds the scale of each row of a tensor in int8.
SCALE_SUFFIX = ".int8_scale"
#: Tensors of fewer elements stay in float16 where others become int8.
FEWEST_QUANTIZED = 4096


class CheckpointError(ParamorphError, ValueError):
    """A file of weights that does not hold exactly what the network needs."""


@dataclass(frozen=True)
class _Info:
    """What has to be known, besides the parameters, to use weights as they were trained."""

    name: str  # what the weights are called, e.g. brain-t1-small
    network: Any  # configuration, which `read_config` reads
    shape: tuple[int, int, int]  # network grid they were trained on, voxels (D, H, W)
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of that grid
    orientation: str = "RAS"  # anatomical directions of the axes D, H, W
    lower_percentile: float = 0.0  # intensity that becomes 0; min-max is 0 and 100
    upper_percentile: float = 100.0  # intensity that becomes 1
    provenance: dict[str, Any] = field(default_factory=dict)  # data, terms, command, accuracy

    read_config: ClassVar[Callable[[dict[str, Any]], Any]]

    def __post_init__(self) -> None:
        _check_info(self)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "network": self.network.as_dict()}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        fields["network"] = cls.read_config(fields["network"])
        fields["shape"] = tuple(fields["shape"])
        fields["spacing_mm"] = tuple(fields["spacing_mm"])
        return cls(**fields)


@dataclass(frozen=True)
class WeightsInfo(_Info):
    """Of a registration network."""

    network: NetworkConfig | PyramidConfig
    read_config = staticmethod(config_from_dict)

    def __post_init__(self) -> None:
        check_shape(self.shape)
        super().__post_init__()


@dataclass(frozen=True)
class FeatureInfo(_Info):
    """Of a feature network."""

    network: FeatureConfig
    read_config = FeatureConfig.from_dict


Info = TypeVar("Info", WeightsInfo, FeatureInfo)
Network = TypeVar("Network", RegistrationNetwork, FeatureNetwork)


def _check_info(info: _Info) -> None:
    """Refuse a grid or intensities that mean nothing.

    Raises:
        CheckpointError: They do.
    """
    try:
        check_grid_spec(GridSpec(info.shape, info.spacing_mm, info.orientation))
        if not 0 <= info.lower_percentile < info.upper_percentile <= 100:
            raise ValueError(f"percentiles {info.lower_percentile} and {info.upper_percentile}")
    except (TypeError, ValueError) as err:
        raise CheckpointError(
            f"weights: expected the grid and intensities that they were trained on, got {err}; "
            "pass those (--shape, --spacing, --orientation)."
        ) from err


def save_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    info: WeightsInfo | FeatureInfo,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write `state` (a state_dict of the network of `info`) and `info`, atomically.

    With `dtype` int8, large tensors are quantized row by row, and all others are in float16.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        t = tensor.detach().cpu().contiguous()
        if dtype != torch.int8:
            tensors[name] = t.to(dtype)
        elif t.ndim > 1 and t.numel() >= FEWEST_QUANTIZED:
            tensors[name], tensors[name + SCALE_SUFFIX] = quantized(t)
        else:
            tensors[name] = t.half()
    key = METADATA_KEY if isinstance(info, WeightsInfo) else FEATURES_KEY
    with staged_file(Path(path)) as staging:
        try:
            save_file(tensors, staging, metadata={key: info.to_json()})
        except SafetensorError as err:  # its only way to say that the disk is full
            raise OSError(str(err)) from err
        staging.chmod(0o644)  # safetensors makes files that only their owner can read


def quantized(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Integers of the tensor's shape and a scale per row, whose products are the nearest values."""
    rows = tensor.float().flatten(1)
    scales = rows.abs().amax(1).clamp_min(1e-12) / 127
    integers = (rows / scales[:, None]).round().to(torch.int8)
    return integers.reshape(tensor.shape), scales


def dequantized(integers: Tensor, scales: Tensor) -> Tensor:
    """What `quantized` stands for, in float32."""
    return integers.float() * scales.reshape(-1, *[1] * (integers.ndim - 1))


def load_weights(path: str | Path) -> tuple[RegistrationNetwork, WeightsInfo]:
    """The network in float32, in evaluation mode, with what is recorded about its weights.

    Raises:
        CheckpointError: No file, not one of ours, or tensors that do not fit its own config.
    """
    return _loaded(path, METADATA_KEY, WeightsInfo, network_of)


def load_feature_weights(path: str | Path) -> tuple[FeatureNetwork, FeatureInfo]:
    """`load_weights` for a feature network.

    Raises:
        CheckpointError: No file, not one of ours, or tensors that do not fit its own config.
    """
    return _loaded(path, FEATURES_KEY, FeatureInfo, FeatureNetwork)


def weights_kind(path: str | Path) -> type[WeightsInfo] | type[FeatureInfo]:
    """What is recorded with the weights in a file; loading them says if they are none.

    Raises:
        CheckpointError: No safetensors file.
    """
    _, metadata = _read_file(path)
    return FeatureInfo if FEATURES_KEY in metadata else WeightsInfo


def _loaded(
    path: str | Path, key: str, kind: type[Info], build: Callable[[Any], Network]
) -> tuple[Network, Info]:
    state, metadata = _read_weights(path, key)
    info = _recorded(kind, metadata, path)
    network = build(info.network)
    check_state(state, network.state_dict(), path)
    network.load_state_dict(state)
    return network.eval(), info


def _recorded(kind: type[Info], metadata: str, path: str | Path) -> Info:
    """What is recorded with weights, or a sentence that names their file."""
    try:
        return kind.from_json(metadata)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as err:
        what = f"no entry {err}" if isinstance(err, KeyError) else err
        raise CheckpointError(
            f"{path}: expected metadata of this version about the weights, got others ({what}); "
            "import or train them again."
        ) from err


def _read_weights(path: str | Path, key: str) -> tuple[dict[str, Tensor], str]:
    """Tensors in float32 and the metadata under `key`."""
    state, metadata = _read_file(path)
    if key not in metadata:
        raise CheckpointError(
            f"{path}: expected weights written by this toolkit, got a safetensors file without "
            f"its '{key}' metadata; write it with models/train.py or "
            "models/import_checkpoint.py."
        )
    return state, metadata[key]


def _read_file(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in float32, and all metadata."""
    path = Path(path)
    check_regular(path, "a file of weights", CheckpointError)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as err:
        raise CheckpointError(
            f"{path}: expected a safetensors file, got something else ({err}); "
            "import reference checkpoints with models/import_checkpoint.py."
        ) from err
    for scale_name in [name for name in state if name.endswith(SCALE_SUFFIX)]:
        name = scale_name.removesuffix(SCALE_SUFFIX)
        if name in state:  # else the network will miss it
            state[name] = dequantized(state[name], state.pop(scale_name))
    return state, metadata


def check_tensor(name: Any, tensor: Tensor, path: Path) -> None:
    """Refuse what is no finite real number in memory, under a name."""
    what = None
    if not isinstance(name, str):
        what = f"one called {name!r}"
    elif tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        what = f"{name} without its numbers (meta, sparse or quantised)"
    elif tensor.is_complex():
        what = f"complex numbers in {name}"
    elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
        what = f"NaN or Inf in {name}"
    if what:
        raise CheckpointError(
            f"{path}: expected finite real tensors by name, got {what}; save the model's "
            "state_dict again."
        )


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: Any) -> None:
    """Refuse tensors of other names or shapes than expected, or without finite real numbers."""
    missing = [name for name in expected if name not in state]
    surplus = [name for name in state if name not in expected]
    if missing or surplus:
        raise CheckpointError(
            f"{source}: expected the tensors of its network config, got "
            + " and ".join(
                f"{what} {_listed(names)}"
                for what, names in (("missing", missing), ("unknown", surplus))
                if names
            )
            + "; check that the file belongs to this network."
        )
    for name, tensor in expected.items():
        check_tensor(name, state[name], Path(source))
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{source}: expected {name} of shape {tuple(tensor.shape)}, "
                f"got {tuple(state[name].shape)}; check window, width and file."
            )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"

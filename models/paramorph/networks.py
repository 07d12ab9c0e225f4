"""Registration networks: which configuration is of which."""

from __future__ import annotations

from paramorph.config import NetworkConfig, PyramidConfig
from paramorph.network import ParaMorph
from paramorph.pyramid import PyramidNetwork

RegistrationNetwork = ParaMorph | PyramidNetwork


def network_of(config: NetworkConfig | PyramidConfig) -> RegistrationNetwork:
    """A network with first weights."""
    return ParaMorph(config) if isinstance(config, NetworkConfig) else PyramidNetwork(config)

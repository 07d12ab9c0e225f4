"""ParaMorph in PyTorch: network, losses, data and training (the training side of the toolkit)."""

from __future__ import annotations

from paramorph.config import CONFIGS, NetworkConfig
from paramorph.network import ParaMorph

__all__ = ["CONFIGS", "NetworkConfig", "ParaMorph"]

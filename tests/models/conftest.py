"""A network small enough for tests, with a displacement that is not zero; a script as a module."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from paramorph import CONFIGS, ParaMorph


def make_network(**options: object) -> ParaMorph:
    """`paramorph-tiny` with seeded weights; its head is scaled up to move by about a voxel."""
    torch.manual_seed(0)
    network = ParaMorph(CONFIGS["paramorph-tiny"].with_options(**options)).eval()
    with torch.no_grad():
        network.decoder.head.weight.normal_(std=0.1)
    return network


@pytest.fixture
def tiny() -> ParaMorph:
    return make_network(window=(2, 2, 3))


@pytest.fixture
def train_features(monkeypatch) -> ModuleType:
    """The script `models/train_features.py`."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "models")
    return import_module("train_features")

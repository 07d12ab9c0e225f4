"""Deformable registration of 3-D medical images with ParaMorph, without torch.

>>> from paramorph_rt import Registration                       # doctest: +SKIP
>>> Registration()("moving.nii.gz", "fixed.nii.gz").save("out")  # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

# Said where results are shown.
PURPOSE = "For research only, not for clinical use."

# ONNX Runtime reads it when it is imported, by whomever; see `optional.telemetry_off`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from .bundle import load_bundle as load_bundle
    from .errors import ParamorphError as ParamorphError
    from .geometry.field import DisplacementField as DisplacementField
    from .geometry.spaces import Grid as Grid
    from .geometry.warp import warp_volume as warp_volume
    from .images.volume import Volume as Volume
    from .images.volume import load_labels as load_labels
    from .images.volume import load_volume as load_volume
    from .images.volume import save_labels as save_labels
    from .images.volume import save_volume as save_volume
    from .registration import Registration as Registration
    from .result import RegistrationResult as RegistrationResult
    from .steps.affine import align_affine as align_affine
    from .steps.brain_mask import brain_masks as brain_masks

# Loaded on first use: importing the package costs nothing, and `--help` comes at once.
_HOME = {
    "DisplacementField": "geometry.field",
    "Grid": "geometry.spaces",
    "ParamorphError": "errors",
    "Registration": "registration",
    "RegistrationResult": "result",
    "Volume": "images.volume",
    "align_affine": "steps.affine",
    "brain_masks": "steps.brain_mask",
    "load_bundle": "bundle",
    "load_labels": "images.volume",
    "load_volume": "images.volume",
    "save_labels": "images.volume",
    "save_volume": "images.volume",
    "warp_volume": "geometry.warp",
}

__all__ = [*_HOME, "__version__"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("paramorph-rt")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)

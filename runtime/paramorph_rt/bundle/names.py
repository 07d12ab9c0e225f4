"""The words of a bundle's format: precisions, devices, engine flavours, tensors and channels."""

from __future__ import annotations

from typing import Literal

MANIFEST = "manifest.json"
FORMAT = "paramorph-bundle"
FORMAT_VERSION = 2

SAMPLING_CONVENTIONS = ("exact", "reference")
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
DEVICES = ("cpu", "gpu")
Flavour = Literal["tensorrt", "tensorrt-rtx"]
#: Module of the library that builds and runs the engines of a flavour.
LIBRARIES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: In place of a compute capability: an engine of TensorRT for RTX for all its cards.
PORTABLE = "portable"

#: Tensors of a registration network, float32 of shape (1, channels, i, j, k).
CHANNELS = {"moving": 1, "fixed": 1, "displacement": 3, "warped": 1}
INPUTS, OUTPUTS = ("moving", "fixed"), ("displacement", "warped")
#: Output of a feature network, float32 of shape (2, channels, i, j, k).
FEATURES = "features"

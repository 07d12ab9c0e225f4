"""OpenVINO's package, imported without its telemetry, for the modules beside this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..system.optional import import_optional

if TYPE_CHECKING:
    import openvino as ov
    import openvino.opset13 as ops
    from openvino import Op
    from openvino.frontend import FrontEndManager
    from openvino.frontend.onnx import ConversionExtension
    from openvino.passes import ConstantFolding, Manager
else:
    ov, ops, _frontend, _onnx, _passes = (
        import_optional(f"openvino{part}", "openvino", "openvino")
        for part in ("", ".opset13", ".frontend", ".frontend.onnx", ".passes")
    )
    Op, FrontEndManager = ov.Op, _frontend.FrontEndManager
    ConversionExtension = _onnx.ConversionExtension
    ConstantFolding, Manager = _passes.ConstantFolding, _passes.Manager

__all__ = [
    "ConstantFolding",
    "ConversionExtension",
    "FrontEndManager",
    "Manager",
    "Op",
    "ops",
    "ov",
]

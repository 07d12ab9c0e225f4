"""OpenVINO's package, imported without its telemetry, for the modules beside this one."""

from __future__ import annotations

from ..system.optional import telemetry_off

with telemetry_off():
    import openvino as ov
    import openvino.opset13 as ops
    from openvino import Op
    from openvino.frontend import FrontEndManager
    from openvino.frontend.onnx import ConversionExtension
    from openvino.passes import ConstantFolding, Manager

__all__ = [
    "ConstantFolding",
    "ConversionExtension",
    "FrontEndManager",
    "Manager",
    "Op",
    "ops",
    "ov",
]

"""From trained weights to a bundle: an ONNX graph, verified, with a manifest that explains it."""

import paramorph_rt  # noqa: F401  # before ONNX Runtime: it turns telemetry off

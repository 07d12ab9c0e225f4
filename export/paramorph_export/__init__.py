"""From trained weights to a bundle: an ONNX graph, verified, with a manifest that explains it."""

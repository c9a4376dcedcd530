"""fp32 ONNX to measured, accuracy-gated variants to a bundle."""

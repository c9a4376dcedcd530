"""Other model servers, each as its own documentation tells its users to serve an ONNX model."""

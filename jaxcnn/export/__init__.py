"""A run's network as others load it: StableHLO, ONNX, safetensors."""

"""Models in onnxruntime: whole, in parts, or layer by layer. Calibration, verification and recovery build on it."""

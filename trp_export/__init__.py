"""Low-rank export of convolutional networks to ONNX: factor, rewrite, verify, measure."""

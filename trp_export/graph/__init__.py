"""The ONNX graph: its normal form, its layers and their cost, and the rewriter that carries out a Plan."""

"""The ONNX graph: normal form, the layers in it, what it costs, and the carrying out of a Plan."""

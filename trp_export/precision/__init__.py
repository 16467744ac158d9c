"""Convert a model to int8 or fp16, choose what stays in float, and decide whether the conversion may ship."""

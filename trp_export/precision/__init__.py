"""The result in fewer bits: int8 from calibration images, or fp16; what stays float, and whether it may ship."""

"""What a network is fed: its inputs described, images and arrays read, batches made, all without onnxruntime."""

"""`torch.compile` of a model's blocks, and the measurement of whether it pays."""

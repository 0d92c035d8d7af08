"""Data loaders: images resident on the device, or streamed from the host."""

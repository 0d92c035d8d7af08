"""ReMem: fine-tunes a pretrained Vision Transformer so that small students learn well from it."""

__version__ = "0.1.0"

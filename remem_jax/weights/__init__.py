"""Pretrained weights: reads, checks and writes the file formats of vit_jax, big_vision and timm."""

"""Pretrained weights: reading, checking and writing the field's files."""

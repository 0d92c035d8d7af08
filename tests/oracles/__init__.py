"""Slow, obvious reference code."""

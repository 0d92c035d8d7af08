"""Slow but simple reference implementations."""

"""Writes and reads files: checkpoints, logs, results and caches."""

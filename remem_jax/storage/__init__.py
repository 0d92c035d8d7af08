"""What is written to disk: checkpoints, logs, records."""

"""Training: pure steps, the loop around them, many students at once."""

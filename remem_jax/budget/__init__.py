"""Runs with a time budget: `remem distil` plans them from the images, the device and the hours."""

"""Data sets that users bring: folders of classes, lists and arrays."""

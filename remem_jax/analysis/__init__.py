"""Measures properties of ViTs: information, its bound, expertness, criticality."""

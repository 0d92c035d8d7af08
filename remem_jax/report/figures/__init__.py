"""Figures, as files for print and for the pages."""

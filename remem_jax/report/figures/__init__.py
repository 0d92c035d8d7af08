"""Figures, as files for print and for the reports."""

"""Exports trained students and teachers to other runtimes, and checks every file that it writes."""

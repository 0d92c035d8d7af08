"""Trained students, and teachers, as other runtimes take them; every file is checked when made."""

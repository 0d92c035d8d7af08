"""The stages of a ReMem run: teachers, students, selection, test and report."""

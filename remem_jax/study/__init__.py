"""Studies: many runs of one table, shared by any number of workers."""

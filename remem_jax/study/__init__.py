"""Studies: many runs of one table, shared by any number of workers."""

from remem_jax.study.frame import load as load

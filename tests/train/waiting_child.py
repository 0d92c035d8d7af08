"""One of two processes of test_mesh.py: computes with the other until one is killed."""

import pathlib
import sys
import time

import jax
import numpy as np

from remem_jax import checks, distributed, mesh

SECONDS = 3  # The limit for joining, and for a missing heartbeat.


def main(out: str, port: int, process: int) -> None:
    """Joins the other process and touches OUT after every step."""
    jax.config.update("jax_num_cpu_devices", 1)
    try:
        distributed.initialize(
            f"localhost:{port}", 2, process, join_seconds=SECONDS, heartbeat_seconds=SECONDS
        )
    except checks.SettingError as error:
        sys.exit(str(error))
    devices = mesh.make_mesh()
    numbers = mesh.place(np.ones(2, np.float32), mesh.batch_sharding(devices))
    step = jax.jit(lambda x: x * x.mean())
    while True:
        numbers = jax.block_until_ready(step(numbers))
        pathlib.Path(out).touch()
        time.sleep(0.05)

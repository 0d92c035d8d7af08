"""What steps take of a device's memory, found by compiling them and running none."""

from typing import Any, NamedTuple

from remem_jax import mesh
from remem_jax.workflow import context


class Need(NamedTuple):
    """Memory of one part of a run, in bytes per device.

    Attributes:
        part: Its name.
        held: Between steps, by what all models of the part share: a teacher, images of a batch.
        each: Between steps, by each model that is trained: parameters, state of the optimiser.
        running: More than that, while a step runs.
        models: How many are trained at once.
    """

    part: str
    held: int
    each: int
    running: int
    models: int = 1

    @property
    def at_rest(self) -> int:
        """All that is held between steps."""
        return self.held + self.models * self.each


def of_step(jitted: Any, *arguments: Any) -> tuple[int, int]:
    """Bytes, on each device, of a function's arguments and of what else it takes while it runs."""
    found = jitted.lower(*arguments).compile().memory_analysis()
    more = found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
    return found.argument_size_in_bytes, more


def batch(run: context.Run, batch_size: int) -> Any:
    """Shapes of a batch of training, and how it lies on the devices."""
    batches = run.loader.train(batch_size, 0, stage="teacher")
    try:
        return mesh.shapes(next(batches), mesh.batch_sharding(run.mesh))
    finally:
        batches.close()

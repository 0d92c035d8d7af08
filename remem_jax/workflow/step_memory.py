"""Memory of compiled steps, measured without running them."""

from typing import Any, NamedTuple

from remem_jax import mesh
from remem_jax.workflow import context


class Need(NamedTuple):
    """Memory of one stage of a run, in bytes per device.

    Attributes:
        stage: Name of the stage.
        held: Memory between steps that all models share: a teacher, images of a batch.
        each: Memory between steps of each trained model: parameters and optimiser state.
        running: Additional memory while a step runs.
        models: Number of models trained at once.
    """

    stage: str
    held: int
    each: int
    running: int
    models: int = 1

    @property
    def at_rest(self) -> int:
        """Memory between steps, of all models."""
        return self.held + self.models * self.each


def of_step(jitted: Any, *arguments: Any) -> tuple[int, int]:
    """Returns the bytes per device of a function's arguments, and of other memory while it runs."""
    analysis = jitted.lower(*arguments).compile().memory_analysis()
    running = (
        analysis.output_size_in_bytes - analysis.alias_size_in_bytes + analysis.temp_size_in_bytes
    )
    return analysis.argument_size_in_bytes, running


def batch(run: context.Run, batch_size: int) -> Any:
    """Returns the shapes and shardings of a training batch."""
    batches = run.loader.train(batch_size, 0, stage="teacher")
    try:
        return mesh.shapes(next(batches), mesh.batch_sharding(run.mesh))
    finally:
        batches.close()

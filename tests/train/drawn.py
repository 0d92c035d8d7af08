"""Random outputs of students and teachers, with all features that losses compare."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from remem_jax.records import Outputs


def outputs(rng: np.random.Generator) -> tuple[Outputs, Outputs]:
    """Draws the outputs of a student with two stages, and of a teacher with three layers."""

    def normal(*shape: int) -> Array:
        return jnp.asarray(rng.normal(0, 2, shape), jnp.float32)

    student, teacher = (
        Outputs(
            normal(5, 3),
            normal(5, 4, 8),
            normal(5, 8),
            normal(5, 8),
            tuple(normal(5, 4, 8) for _ in range(layers)),
        )
        for layers in (2, 3)
    )
    entries = normal(6, 8)
    queue = entries / jnp.linalg.norm(entries, axis=-1, keepdims=True)
    # There have been only four images.
    return student, teacher._replace(queue=queue.at[4:].set(0.0))

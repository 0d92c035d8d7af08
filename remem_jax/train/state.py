"""What a training step takes and returns."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from remem_jax.models import projection
from remem_jax.records import Params, Variables


class State(NamedTuple):
    """All that a run needs to go on.

    Attributes:
        step: Steps done.
        params: What the optimiser changes: the model's, and of some students a `projection`.
        statistics: What else the model keeps, by collection: {"batch_stats": ...} or {}.
        opt_state: State of the optimiser.
    """

    step: Int[Array, ""]
    params: Params
    statistics: Params
    opt_state: Any

    @property
    def variables(self) -> Variables:
        """What `model.apply` takes: all but a projection."""
        return projection.without({"params": self.params, **self.statistics})


def create(variables: Variables, tx: optax.GradientTransformation) -> State:
    """State at step 0; the variables are copied, so that a step may donate them."""
    copies = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), dict(variables))
    statistics = {name: tree for name, tree in copies.items() if name != "params"}
    return State(jnp.zeros((), jnp.int32), copies["params"], statistics, tx.init(copies["params"]))

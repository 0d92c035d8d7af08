"""The state that a training step takes and returns, with or without an average of the weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from remem_jax.models import projection
from remem_jax.records import Params, Variables
from remem_jax.train import teacher_queue


class State(NamedTuple):
    """Everything that training needs to resume.

    Attributes:
        step: Number of steps done.
        params: Trained parameters: of the model, and of some students' `projection`.
        statistics: Other variables of the model, by collection: {"batch_stats": ...} or {}; and of
            some students a `teacher_queue`.
        opt_state: State of the optimiser.
    """

    step: Int[Array, ""]
    params: Params
    statistics: Params
    opt_state: Any

    @property
    def variables(self) -> Variables:
        """Variables for `model.apply`, without a projection or a queue."""
        statistics = teacher_queue.without(self.statistics)
        return projection.without({"params": self.params, **statistics})


class Averaged(NamedTuple):
    """A training state and the moving average of its variables; see `averaging`.

    Attributes:
        trained: The state that training changes.
        average: Averages of the trained parameters and of the statistics, without a projection or a
            queue.
    """

    trained: State
    average: Variables

    @property
    def step(self) -> Int[Array, ""]:
        """Number of steps done."""
        return self.trained.step

    @property
    def params(self) -> Params:
        """Trained parameters, not averaged."""
        return self.trained.params

    @property
    def variables(self) -> Variables:
        """Variables for `model.apply`: the averages."""
        return self.average


# Checkpoints without an average have no field for it, as those of earlier versions.
TrainState = State | Averaged


def with_params(state: TrainState, params: Params) -> TrainState:
    """Returns a state with other trained parameters; its average, if any, is unchanged."""
    if isinstance(state, Averaged):
        return state._replace(trained=state.trained._replace(params=params))
    return state._replace(params=params)


def create(variables: Variables, tx: optax.GradientTransformation) -> State:
    """Creates the state at step 0, with copies of the variables, so that a step may donate them."""
    copies = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), dict(variables))
    statistics = {name: tree for name, tree in copies.items() if name != "params"}
    return State(jnp.zeros((), jnp.int32), copies["params"], statistics, tx.init(copies["params"]))

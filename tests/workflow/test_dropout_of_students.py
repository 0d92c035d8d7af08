"""Dropout and stochastic depth of the paper's students, in the step and evaluation of a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.records import Hyperparameters
from remem_jax.settings import check_remem
from remem_jax.workflow import context
from remem_jax.workflow.remem import student_grid, student_setup
from tests.oracles import peers

pytestmark = pytest.mark.slow
DROPOUT, DROP_PATH = 0.5, 0.3
POINT = student_grid.GridPoint(student_grid.LABELS, Hyperparameters(0.1, 1.0, 1.0, 0))


@contextmanager
def _watched() -> Iterator[list[nn.Dropout]]:
    """Yields a list that gets all dropout layers of the networks that are traced meanwhile."""
    layers: list[nn.Dropout] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Dropout):
            layers.append(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        yield layers


def _rates(layers: list[nn.Dropout], *, of_images: bool) -> list[float]:
    """Returns the rates of active layers that drop whole images of a block, or single features."""
    return [
        layer.rate
        for layer in layers
        if not layer.deterministic and bool(layer.broadcast_dims) == of_images
    ]


def _run_of(run: context.Run, student: str) -> student_setup.StudentSetup:
    """Builds students from scratch with both options, as `config.student` describes them."""
    config = run.config
    config.methods, config.student.model = ("scratch",), student
    config.student.stem, config.student.weight_decay = "small", 0.0
    config.student.warmup_steps = 0
    config.student.dropout, config.student.drop_path = DROPOUT, DROP_PATH
    check_remem(config)
    return student_setup.make(run, None)


def _batch() -> tuple[jax.Array, jax.Array]:
    """Returns two images and their labels."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 3))
    return jnp.asarray(pixels, jnp.float32), jnp.asarray([0, 1])


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_v2_b0"])
def test_the_step_of_a_run_has_timms_rates_and_evaluation_has_none(
    small_run: context.Run, name: str
) -> None:
    setup = _run_of(small_run, name)
    state: Any = setup.shapes[POINT.loss]
    images, labels = _batch()

    with _watched() as in_training:
        jax.eval_shape(setup.step(POINT), state, images, labels, None, POINT.hyperparameters)
    with _watched() as in_evaluation:
        variables = {"params": state.params, **state.statistics}
        jax.eval_shape(setup.measure.apply, variables, images)

    with peers.torch().device("meta"):
        peer = peers.timm().create_model(
            models.STUDENTS[name].timm, drop_rate=DROPOUT, drop_path_rate=DROP_PATH
        )
    # timm gives blocks without a shortcut a rate too, and does not use it.
    blocks = [m for m in peer.modules() if hasattr(m, "drop_path") and getattr(m, "has_skip", True)]
    expected = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    np.testing.assert_allclose(_rates(in_training, of_images=True), expected, rtol=1e-6)
    assert _rates(in_training, of_images=False) == [peer.drop_rate]
    assert len(in_evaluation) == len(in_training)
    assert all(layer.deterministic for layer in in_evaluation)


def test_both_options_act_in_the_step_of_a_run(small_run: context.Run) -> None:
    setup, (images, labels) = _run_of(small_run, "resnet18"), _batch()
    head = models.STUDENTS["resnet18"].head[0].split("/")[0]
    starts = []

    def stepped(seed: int) -> Any:
        first = setup.first_state(POINT)
        # The last scales of a ResNet's blocks are zero at first, so that these do nothing.
        params = jax.tree.map(lambda leaf: leaf + 0.1 * (leaf == 0), first.params)
        state = first._replace(params=params)
        starts.append(np.array(state.params[head]["kernel"]))
        hyperparameters = POINT.hyperparameters._replace(seed=seed)
        return jax.device_get(setup.step(POINT)(state, images, labels, None, hyperparameters)[0])

    one, other = stepped(0), stepped(1)

    # A row of the head's gradient is zero if its feature was dropped for both images.
    for before, after in zip(starts, (one, other), strict=True):
        unchanged = (after.params[head]["kernel"] == before).all(axis=-1)
        assert unchanged.mean() == pytest.approx(DROPOUT**2, abs=0.06)
    # Dropout before the head does not change the statistics of the maps, but stochastic depth does.
    changed = jax.tree.map(np.array_equal, one.statistics, other.statistics)
    assert not all(jax.tree.leaves(changed))

"""Training states: created in shards, and only one of them after a restart."""

import gc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import mesh, models, optim
from remem_jax.models import encoder
from remem_jax.records import Outputs
from remem_jax.train import loop, state
from remem_jax.workflow import context, step_memory
from remem_jax.workflow.remem import finetune, student_setup, teacher_training
from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture
def divided(small_run: context.Run, monkeypatch: pytest.MonkeyPatch) -> context.Run:
    """A run whose states, small arrays included, are divided among two devices."""
    monkeypatch.setattr(mesh, "SMALLEST_DIVIDED", 2)
    small_run.config.fsdp = True
    return small_run._replace(mesh=mesh.make_mesh())


def _require_divided(tree: Any) -> None:
    """Raises unless each device has half, but for small arrays."""
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert mesh.device_bytes(tree) < 0.52 * whole


def _placed(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)


def test_a_teacher_goes_from_the_host_to_where_its_pieces_belong(divided: context.Run) -> None:
    first = teacher_training.start(divided, finetune.read_pretrained(divided), "finetune")
    settings = teacher_training.settings_of(divided.config, "finetune")
    training = teacher_training.make_training(divided, settings, first)
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}

    made = training.first_state()

    gc.collect()
    left = [array for array in jax.live_arrays() if id(array) not in before]
    assert len(left) == len(jax.tree.leaves(made))  # No copy beside it.
    _require_divided(made)
    assert _placed(made) == _placed(training.shapes)
    # The arrays of the file are on the host.
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(first.trainable))
    jax.tree.map(np.testing.assert_array_equal, made.params, encoder.stack(first.trainable))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(made.opt_state))


def test_no_device_holds_the_whole_of_what_is_drawn(
    divided: context.Run,
) -> None:
    key = jax.random.key(3)
    model = models.make("vit", variant=tiny_run.TEACHER, classes=3)
    init = models.make_init(model, tiny_run.IMAGE_SIZE)
    tx = optim.sgd(
        lambda count: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=None
    )

    def create(key: jax.Array) -> state.State:
        return state.create(init(key), tx)

    by_two = divided.jit_create(create, key).lower(key).compile()

    by_one = jax.jit(create).lower(key).compile()
    assert _held(by_two) < 0.55 * _held(by_one)
    made = by_two(key)
    _require_divided(made)
    jax.tree.map(np.testing.assert_array_equal, made, by_one(key))


def _held(compiled: Any) -> int:
    """Bytes that a device holds while a function runs."""
    found = compiled.memory_analysis()
    return found.output_size_in_bytes + found.temp_size_in_bytes


def test_students_begin_divided(divided: context.Run) -> None:
    divided.config.methods = ("scratch",)
    setup = student_setup.make(divided, None)

    made = setup.first_states[student_setup.SCRATCH](3)

    _require_divided(made)
    assert _placed(made) == _placed(setup.shapes[student_setup.SCRATCH])


def test_a_run_that_goes_on_holds_one_state(
    small_run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run.config.teacher.steps, small_run.config.teacher.warmup_steps = (4,), 0
    pretrained = finetune.read_pretrained(small_run)
    make_training = teacher_training.make_training
    held, made = [], []

    def watched(*arguments: Any) -> teacher_training.Training:
        training = make_training(*arguments)

        def step(now: state.State, *rest: Any, **named: Any) -> Any:
            gc.collect()
            alive = [array for array in jax.live_arrays() if array.ndim]
            held.append(sum(array.nbytes for array in alive))
            return training.step(now, *rest, **named)

        def first_state() -> state.State:
            made.append(1)
            return training.first_state()

        return training._replace(step=step, first_state=first_state)

    monkeypatch.setattr(teacher_training, "make_training", watched)
    monkeypatch.setattr(teacher_training, "operations", lambda *_: lambda *_: 1.0)
    stopped = small_run._replace(stopping=_after(2))
    with pytest.raises(loop.StoppedError):
        finetune.finetune(stopped, pretrained, "finetune")

    finetune.finetune(small_run, pretrained, "finetune")

    assert len(made) == 1
    assert len(held) == 4
    assert held[2] <= held[0]  # The first steps of the two starts.


def _after(steps: int) -> Callable[[], bool]:
    """Stops a run after so many steps."""
    asked = iter(range(1, steps + 1))
    return lambda: next(asked, steps) == steps


def test_runs_of_other_seeds_compile_nothing_again(small_run: context.Run) -> None:
    pretrained = finetune.read_pretrained(small_run)
    batch, number = step_memory.batch(small_run, 8), np.int32(0)
    (point, *_) = student_setup.grid_points(small_run.config.student)
    answer = jax.eval_shape(lambda: Outputs(jnp.zeros((8, 10))))

    def lowered(seed: int) -> list[str]:
        config = small_run.config.copy_and_resolve_references()
        config.seed = seed
        run = small_run._replace(config=config)
        first = teacher_training.start(run, pretrained, "finetune")
        training = teacher_training.make_training(
            run, teacher_training.settings_of(config, "finetune"), first
        )
        room: Any = student_setup.make(run, pretrained)
        seen = jax.eval_shape(room.augment, number, batch)
        state = room.shapes[point.loss]
        functions = [
            training.step.lower(training.shapes, batch, first.frozen),
            room.augment.lower(number, batch),
            room.steps[point.loss].lower(state, *seen, answer, point.hyperparameters),
        ]
        return [function.as_text() for function in functions]

    assert lowered(0) == lowered(1)

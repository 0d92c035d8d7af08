"""Training states are created in shards, and only one exists after a restart."""

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
from remem_jax.workflow.remem import finetune, student_grid, student_setup, teacher_training
from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture
def sharded(small_run: context.Run, monkeypatch: pytest.MonkeyPatch) -> context.Run:
    """A run whose states, including small arrays, are sharded over two devices."""
    monkeypatch.setattr(mesh, "SMALLEST_DIVIDED", 2)
    small_run.config.fsdp = True
    return small_run._replace(mesh=mesh.make_mesh())


def _require_sharded(tree: Any) -> None:
    """Checks that each device holds about half of the bytes."""
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    assert mesh.device_bytes(tree) < 0.52 * total


def _layout(tree: Any) -> Any:
    """Returns shapes, dtypes and shardings."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), tree)


def test_a_teacher_is_sharded_when_it_leaves_the_host(sharded: context.Run) -> None:
    first = teacher_training.start(sharded, finetune.read_pretrained(sharded), "finetune")
    settings = teacher_training.settings_of(sharded.config, "finetune")
    training = teacher_training.make_training(sharded, settings, first)
    gc.collect()
    before = {id(array) for array in jax.live_arrays()}

    created: Any = training.first_state()

    gc.collect()
    new_arrays = [array for array in jax.live_arrays() if id(array) not in before]
    assert len(new_arrays) == len(jax.tree.leaves(created))  # There is no copy.
    _require_sharded(created)
    assert _layout(created) == _layout(training.shapes)
    # The arrays of the file are on the host.
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(first.trainable))
    jax.tree.map(np.testing.assert_array_equal, created.params, encoder.stack(first.trainable))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(created.opt_state))


def test_the_average_of_a_teacher_is_sharded_beside_its_parameters(sharded: context.Run) -> None:
    first = teacher_training.start(sharded, finetune.read_pretrained(sharded), "finetune")
    settings = teacher_training.settings_of(sharded.config, "finetune")
    settings.ema, settings.optimizer = 0.9, "adamw"
    training = teacher_training.make_training(sharded, settings, first)

    created: Any = training.first_state()

    _require_sharded(created)
    assert _layout(created) == _layout(training.shapes)
    assert _layout(created.average["params"]) == _layout(created.params)
    # Donation would fail if both were the same buffers.
    donated = jax.jit(lambda trained: trained, donate_argnums=0)(created)
    jax.tree.map(np.testing.assert_array_equal, donated.average["params"], donated.params)


def test_the_memory_of_a_teacher_includes_its_average(small_run: context.Run) -> None:
    pretrained = finetune.read_pretrained(small_run)
    first = teacher_training.start(small_run, pretrained, "finetune")
    plain = teacher_training.planned_step(small_run, "finetune", first).at_rest

    small_run.config.teacher.ema = 0.9
    averaged = teacher_training.planned_step(small_run, "finetune", first).at_rest

    assert averaged - plain == sum(leaf.nbytes for leaf in jax.tree.leaves(first.trainable))


def test_no_device_holds_all_initial_parameters(
    sharded: context.Run,
) -> None:
    key = jax.random.key(3)
    model = models.make("vit", variant=tiny_run.TEACHER, classes=3)
    init = models.make_init(model, tiny_run.IMAGE_SIZE)
    tx = optim.sgd(
        lambda count: 0.1, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=None
    )

    def create(key: jax.Array) -> state.State:
        return state.create(init(key), tx)

    on_two = sharded.jit_create(create, key).lower(key).compile()

    on_one = jax.jit(create).lower(key).compile()
    assert _held(on_two) < 0.55 * _held(on_one)
    created = on_two(key)
    _require_sharded(created)
    jax.tree.map(np.testing.assert_array_equal, created, on_one(key))


def _held(compiled: Any) -> int:
    """Returns the bytes that a device holds while a function runs."""
    memory = compiled.memory_analysis()
    return memory.output_size_in_bytes + memory.temp_size_in_bytes


def test_initial_states_of_students_are_sharded(sharded: context.Run) -> None:
    sharded.config.methods = ("scratch",)
    sharded.config.student.ema = 0.9
    setup = student_setup.make(sharded, None)

    created = setup.first_states[student_grid.LABELS](3, False)

    _require_sharded(created)
    assert _layout(created) == _layout(setup.shapes[student_grid.LABELS])


def test_a_resumed_run_holds_one_state(
    small_run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_run.config.teacher.steps, small_run.config.teacher.warmup_steps = (4,), 0
    pretrained = finetune.read_pretrained(small_run)
    make_training = teacher_training.make_training
    held, created = [], []

    def observed(*arguments: Any) -> teacher_training.Training:
        training = make_training(*arguments)

        def step(current: state.State, *rest: Any, **options: Any) -> Any:
            gc.collect()
            alive = [array for array in jax.live_arrays() if array.ndim]
            held.append(sum(array.nbytes for array in alive))
            return training.step(current, *rest, **options)

        def first_state() -> state.TrainState:
            created.append(1)
            return training.first_state()

        return training._replace(step=step, first_state=first_state)

    monkeypatch.setattr(teacher_training, "make_training", observed)
    monkeypatch.setattr(teacher_training, "operations", lambda *_: lambda *_: 1.0)
    stopped = small_run._replace(stopping=_after(2))
    with pytest.raises(loop.StoppedError):
        finetune.finetune(stopped, pretrained, "finetune")

    finetune.finetune(small_run, pretrained, "finetune")

    assert len(created) == 1
    assert len(held) == 4
    assert held[2] <= held[0]  # The first step of each of the two starts.


def _after(steps: int) -> Callable[[], bool]:
    """Returns a function that stops a run after this number of steps."""
    calls = iter(range(1, steps + 1))
    return lambda: next(calls, steps) == steps


def test_runs_with_other_seeds_recompile_nothing(small_run: context.Run) -> None:
    pretrained = finetune.read_pretrained(small_run)
    batch, number = step_memory.batch(small_run, 8), np.int32(0)
    (point, *_) = student_grid.grid_points(small_run.config.student)
    teacher_outputs = jax.eval_shape(lambda: Outputs(jnp.zeros((8, 10))))

    def lowered(seed: int) -> list[str]:
        config = small_run.config.copy_and_resolve_references()
        config.seed = seed
        run = small_run._replace(config=config)
        first = teacher_training.start(run, pretrained, "finetune")
        training = teacher_training.make_training(
            run, teacher_training.settings_of(config, "finetune"), first
        )
        setup: Any = student_setup.make(run, pretrained)
        inputs = jax.eval_shape(setup.augment, number, batch)
        state = setup.shapes[point.loss]
        functions = [
            training.step.lower(training.shapes, batch, first.frozen),
            setup.augment.lower(number, batch),
            setup.step(point).lower(state, *inputs, teacher_outputs, point.hyperparameters),
        ]
        return [function.as_text() for function in functions]

    assert lowered(0) == lowered(1)

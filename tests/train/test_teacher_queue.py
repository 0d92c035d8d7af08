"""The queue of a teacher's features, compared with torch's and with a loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from remem_jax import mesh
from remem_jax.records import Hyperparameters, Outputs
from remem_jax.train import averaging, state, steps, student_losses, teacher_queue
from tests.oracles import peers

BATCHES = [(3, 6), (6, 6), (8, 6), (2, 9)]


@pytest.mark.parametrize(("batch", "size"), BATCHES)
def test_a_queue_has_the_last_images_newest_batch_first(
    batch: int, size: int, rng: np.random.Generator
) -> None:
    torch = peers.torch()
    batches = rng.normal(size=(4, batch, 5)).astype(np.float32)
    newest_first: list[np.ndarray] = []
    for features in batches:
        new = torch.nn.functional.normalize(torch.tensor(features), dim=-1).numpy()
        newest_first = [*new, *newest_first][:size]
    expected = np.zeros((size, 5))
    expected[: len(newest_first)] = newest_first

    queue = functools.reduce(teacher_queue.pushed, map(jnp.asarray, batches), jnp.zeros((size, 5)))

    np.testing.assert_allclose(queue, expected, rtol=1e-5, atol=1e-6)


def test_the_number_of_entries_is_about_a_quarter_to_a_half_of_the_images() -> None:
    for images in (32, 49, 50, 99, 1_000, 1_999, 9_999, 20_000, 32_000):
        assert 0.2 <= teacher_queue.entries(images) / images <= 0.65
    assert teacher_queue.entries(3) == 16
    assert teacher_queue.entries(1_281_167) == 8_192


def apply(params: Any, statistics: Any, images: Any, key: Any) -> tuple[Outputs, Any]:
    """Applies a linear student with a statistic, which must not get the queue."""
    del key
    assert set(statistics) == {"batch_stats"}
    pixels = images.reshape(len(images), -1)
    pooled = pixels @ params["student"]
    patches = pooled[:, None] * jnp.arange(1.0, 3.0)[None, :, None]
    statistics = {"batch_stats": statistics["batch_stats"] + 1}
    return Outputs(pooled[:, :3], patches=patches, pooled=pooled), statistics


TX = optax.sgd(1.0)
STEP = averaging.averaged(
    steps.make_student_step(
        apply,
        TX,
        loss=functools.partial(student_losses.LOSSES["relations"], hard_labels=True),
        key=jax.random.key(0),
    ),
    decay=0.5,
    warmup=False,
)


def first() -> Any:
    kernel = np.random.default_rng(5).normal(size=(12, 4)).astype(np.float32)
    variables = {"params": {"student": jnp.asarray(kernel)}, "batch_stats": jnp.zeros(2)}
    return averaging.begin(state.create(teacher_queue.add(variables, 6, 4), TX), decay=0.5)


def batch(rng: np.random.Generator, shardings: Any = None) -> Any:
    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    teacher = Outputs(normal(4, 3), patches=normal(4, 2, 4), pooled=normal(4, 4))
    images = normal(4, 2, 2, 3)
    inputs = images, jnp.asarray([0, 1, 2, 0], jnp.int32), teacher
    return jax.device_put(inputs, shardings) if shardings else inputs


@pytest.mark.usefixtures("mixed_dtypes")
def test_a_step_compares_with_the_batch_and_those_before_and_the_student_has_no_queue() -> None:
    rng = np.random.default_rng(0)
    trained, step = first(), jax.jit(STEP)
    pushed, queue = [], np.zeros((6, 4))
    for _ in range(2):
        images, labels, teacher = batch(rng)
        pushed = [*np.asarray(teacher.pooled), *pushed][:6]
        queue = np.stack([*pushed, *[np.zeros(4)] * (6 - len(pushed))])
        queue /= np.maximum(np.linalg.norm(queue, axis=-1, keepdims=True), 1e-12)
        outputs, _ = apply(trained.params, {"batch_stats": jnp.zeros(2)}, images, None)
        expected = student_losses.LOSSES["relations"](
            outputs,
            teacher._replace(queue=jnp.asarray(queue, jnp.float32)),
            labels,
            temperature=1.0,
            weight=0.5,
            hard_labels=True,
        )

        trained, metrics = step(trained, images, labels, teacher, Hyperparameters(0.1, 1.0, 0.5, 0))

        assert float(metrics["loss"]) == pytest.approx(float(expected), rel=1e-5)
        assert int(metrics["fault"]) == 0
    np.testing.assert_allclose(
        trained.trained.statistics[teacher_queue.NAME]["pooled"], queue, rtol=1e-5, atol=1e-6
    )
    for variables in (trained.variables, trained.trained.variables):
        assert set(variables) == {"params", "batch_stats"}


@pytest.mark.usefixtures("mixed_dtypes")
def test_the_queue_is_the_same_on_two_devices() -> None:
    states = []
    for devices in (1, 2):
        on, rng = mesh.make_mesh(jax.devices()[:devices]), np.random.default_rng(0)
        trained = jax.device_put(first(), mesh.replicated(on))
        step = jax.jit(STEP, out_shardings=mesh.replicated(on))
        for _ in range(3):
            inputs = batch(rng, mesh.batch_sharding(on))
            trained, _ = step(trained, *inputs, Hyperparameters(0.1, 1.0, 0.5, 0))
        states.append(jax.device_get(trained))
    queues = [each.trained.statistics[teacher_queue.NAME]["pooled"] for each in states]

    np.testing.assert_array_equal(*queues)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *states)

"""The advice in errors about a non-finite loss or exhausted memory."""

import jax
import jax.numpy as jnp
import pytest

from remem_jax.train import loop
from remem_jax.workflow import advice, stages


@pytest.mark.parametrize(
    ("stage", "fault", "expected"),
    [
        ("teachers/remem", "gradient", r"Lower config\.teacher\.learning_rate, .*config\.retries"),
        ("students/remem/step_5", "loss", r"Lower config\.student\.learning_rates"),
        ("information/remem", "update", r"Lower config\.information\.learning_rate"),
        ("teachers/remem", "checkpoint", r"No learning rate helps: .*config\.teacher\.init"),
        ("students/remem/step_5", "checkpoint", r"No learning rate helps: .*initialisers"),
        ("students/remem/step_5", "teacher", r"No learning rate .*tune it again.*teacher\.steps"),
        ("information/remem", "teacher", r"No learning rate helps: .*leave it out"),
        ("teachers/remem", "data", r"No learning rate .*crop_area, and config\.teacher\.mixup"),
        ("information/remem", "data", r"No learning rate helps: .*crop_area\)\.$"),
        ("students/remem/step_5", "parameters", r"Checkpoints .*begin again in another"),
    ],
)
def test_advice_depends_on_what_was_not_finite_first(stage: str, fault: str, expected: str) -> None:
    match = f"^{stages.title(stage)}, bad\\. {expected}"

    with pytest.raises(loop.NonFiniteLossError, match=match) as error, advice.on_divergence(stage):
        raise loop.NonFiniteLossError("bad", fault)

    assert error.value.part == fault


@pytest.mark.parametrize(
    ("stage", "resumable", "new_run"),
    [
        ("teachers/remem", "config.teacher.rematerialise", "config.teacher.batch_size"),
        ("students/remem/step_5", "config.student.group", "config.student.batch_size"),
        ("information/remem", "XLA_PYTHON_CLIENT_MEM_FRACTION", "config.information.batch_size"),
    ],
)
def test_exhausted_memory_is_a_one_line_error_that_names_settings(
    stage: str, resumable: str, new_run: str
) -> None:
    with pytest.raises(advice.OutOfMemoryError) as error, advice.on_out_of_memory(stage):
        jnp.zeros(2**50).block_until_ready()  # 4 PiB.

    message = str(error.value)
    assert message.startswith(f"{stages.title(stage)}: the memory of ")
    assert "\n" not in message
    assert resumable in message.partition("in another --workdir")[0]
    assert new_run in message.partition("in another --workdir")[2]


def test_other_device_errors_are_unchanged() -> None:
    with (
        pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"),
        advice.on_out_of_memory("teachers/remem"),
    ):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

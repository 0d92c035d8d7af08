"""The schedule with a deadline, compared with Optax's where it is not shortened."""

import itertools

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remem_jax.train import loop, pace
from tests.train.test_loop import Recorder


def paced(steps: int = 100, warmup: int = 10, left: float = 1e9) -> pace.Pace:
    return pace.Pace(steps, warmup, lambda: left)


@pytest.mark.parametrize(("steps", "warmup"), [(100, 10), (7, 0), (50, 49)])
def test_rates_are_those_of_optax_with_enough_time(steps: int, warmup: int) -> None:
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps, end_value=0.0)
    ours = paced(steps, warmup)
    for done in range(10, steps, 10):
        assert ours.measured(done, step_seconds=1.0) == steps
    np.testing.assert_allclose(
        [ours.rate(step) for step in range(steps)],
        [float(schedule(step)) for step in range(steps)],
        atol=1e-6,
    )


@given(
    done=st.integers(1, 98),
    step_seconds=st.floats(0.01, 10),
    left=st.floats(-5, 200),
    warmup=st.integers(0, 60),
)
def test_a_shortened_schedule_is_continuous_and_ends_at_zero(
    done: int, step_seconds: float, left: float, warmup: int
) -> None:
    ours = paced(100, warmup, left)
    before = ours.rate(done)
    steps = ours.measured(done, step_seconds)
    assert done < steps <= 100
    assert ours.rate(done) == pytest.approx(before)
    assert ours.rate(steps) == pytest.approx(0, abs=1e-9)
    if steps < 100:  # What is left of the schedule fits, but for the one step that there is always.
        assert (steps - done) * step_seconds <= max(left, step_seconds)


@given(
    done=st.integers(1, 98),
    step_seconds=st.floats(0.01, 10),
    left=st.floats(-5, 200),
)
def test_progress_rises_to_1_at_the_last_step_also_if_their_number_changes(
    done: int, step_seconds: float, left: float
) -> None:
    ours = pace.Pace(100, 0, lambda: left, most_steps=150)
    assert ours.progress(done - 1) == pytest.approx(done / 100)
    before = [ours.progress(step) for step in range(done)]

    steps = ours.measured(done, step_seconds)

    values = [*before, *map(ours.progress, range(done, steps))]
    assert all(0 < a < b for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(1.0)
    resumed = pace.Pace(100, 0, lambda: left, saved=ours.record(), most_steps=150)
    assert resumed.progress(done) == ours.progress(done)


def test_time_for_evaluations_is_left() -> None:
    assert paced(left=50.0).measured(50, 1.0, other_seconds=10.0) == 90


def test_a_schedule_is_shortened_again_if_steps_get_slower() -> None:
    left = iter([40.0, 10.0])
    ours = pace.Pace(100, 0, lambda: next(left))
    assert ours.measured(50, 1.0) == 90
    assert ours.measured(60, 1.0) == 70
    assert ours.rate(70) == pytest.approx(0, abs=1e-9)


def test_a_schedule_is_lengthened_again_after_some_slow_steps_but_not_beyond_the_plan() -> None:
    left = iter([60.0, 50.0, 45.0])
    ours = pace.Pace(100, 0, lambda: next(left))
    assert ours.measured(40, 2.0) == 70
    before = ours.rate(44)
    assert ours.measured(44, 1.0) == 94
    assert ours.rate(44) == pytest.approx(before)
    assert ours.measured(50, 0.5) == 100
    assert ours.rate(100) == pytest.approx(0, abs=1e-9)


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    first = paced(left=20.0)
    first.measured(50, 1.0)
    resumed = pace.Pace(100, 10, lambda: 1e9, first.record())
    assert resumed.steps == first.steps == 70
    assert [resumed.rate(step) for step in range(50, 70)] == [
        first.rate(step) for step in range(50, 70)
    ]


def test_the_loop_ends_at_the_shortened_step_which_is_evaluated_and_saved() -> None:
    recorder = Recorder()
    effects = recorder.effects()._replace(replanned=lambda done, steps, seconds: min(steps, 7))
    last = loop.fit(
        0,
        lambda state, batch: (state + 1, {"loss": 1.0}),
        iter(int, 1),  # pyright: ignore[reportArgumentType] - batches of the test.
        first_step=0,
        schedule=loop.Schedule(steps=10, milestones=(10,), log_every=3, save_every=100),
        effects=effects,
    )
    assert last == 7
    assert recorder.milestones == recorder.saved == [(7, 7)]

"""The training loop, with effects that record their calls."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from remem_jax.train import finite, loop


class Recorder:
    """Effects that record the steps and the states of their calls."""

    def __init__(self, stop_after: int = 100) -> None:
        self.stop_after = stop_after
        self.logged: list[Any] = []
        self.saved: list[Any] = []
        self.milestones: list[Any] = []
        self.progress: list[int] = []
        self.faulty: list[Any] = []

    def effects(self) -> loop.Effects:
        return loop.Effects(
            log=lambda step, metrics: self.logged.append((step, metrics)),
            save=lambda step, state: self.saved.append((step, state)),
            milestone=lambda step, state: self.milestones.append((step, state)),
            progress=self.progress.append,
            faulty=lambda numbers, state: self.faulty.append((numbers, state)),
            stopping=lambda done: done >= self.stop_after,
        )


def fit(
    *,
    first_step: int = 0,
    losses: dict[int, Any] | None = None,
    faults: dict[int, Any] | None = None,
    recorder: Recorder | None = None,
    seconds: tuple[float, float] = (0.0, 0.0),
) -> tuple[Any, Recorder]:
    """Takes ten steps whose state is their number; logs every 3 steps and saves every 4.

    A batch takes `seconds[0]` and a step takes `seconds[1]`.
    """
    recorder = recorder or Recorder()

    def batches() -> Iterator[int]:
        while True:
            time.sleep(seconds[0])
            yield 1

    def step(state: int, batch: Any) -> tuple[int, Any]:
        time.sleep(seconds[1])
        loss, fault = (values or {} for values in (losses, faults))
        metrics = {"loss": loss.get(state + 1, 1.0)}
        return state + batch, metrics | ({"fault": fault.get(state + 1, 0)} if fault else {})

    last = loop.fit(
        first_step,
        step,
        batches(),  # pyright: ignore[reportArgumentType] - batches of the test.
        first_step=first_step,
        schedule=loop.Schedule(steps=10, milestones=(2, 10), log_every=3, save_every=4),
        effects=recorder.effects(),
    )
    return last, recorder


def test_every_step_is_taken_once() -> None:
    last, recorder = fit()
    assert (last, recorder.progress) == (10, list(range(1, 11)))


def test_metrics_are_logged_on_schedule_and_at_the_end() -> None:
    assert [step for step, _ in fit()[1].logged] == [3, 6, 9, 10]


def test_states_are_saved_on_schedule_and_at_the_end() -> None:
    assert fit()[1].saved == [(4, 4), (8, 8), (10, 10)]


def test_milestones_get_the_state_after_their_step() -> None:
    assert fit()[1].milestones == [(2, 2), (10, 10)]


def test_a_stopped_run_resumes_at_its_step() -> None:
    last, recorder = fit(first_step=8)
    assert (last, recorder.progress, recorder.milestones) == (10, [9, 10], [(10, 10)])


def test_a_finished_run_takes_no_steps() -> None:
    last, recorder = fit(first_step=10)
    assert (last, recorder.progress) == (10, [])


def test_a_nan_loss_stops_the_run_and_names_its_step() -> None:
    with pytest.raises(loop.NonFiniteLossError, match=r"nan at step 6; .* safe is 4"):
        fit(losses={6: float("nan")})


def test_nothing_is_saved_after_an_infinite_loss() -> None:
    recorder = Recorder()
    with pytest.raises(loop.NonFiniteLossError):
        loop.fit(
            0,
            lambda state, batch: (state + 1, {"loss": float("inf")}),
            itertools.repeat(1),  # pyright: ignore[reportArgumentType]
            first_step=0,
            schedule=loop.Schedule(steps=4, milestones=(4,), log_every=2, save_every=2),
            effects=recorder.effects(),
        )
    assert recorder.saved == []


@pytest.mark.parametrize("step", [2, 4])  # A milestone and a save, which are not logged.
def test_a_nan_loss_is_detected_before_its_state_is_saved(step: int) -> None:
    with pytest.raises(loop.NonFiniteLossError, match=f"at step {step};"):
        fit(losses={step: float("nan")})


def test_one_diverged_student_does_not_stop_the_others() -> None:
    last, _ = fit(losses={6: [float("nan"), 1.0]})
    assert last == 10


def test_a_diverged_student_is_reported_before_its_state_is_used() -> None:
    recorder = Recorder()
    calls: list[Any] = []
    recorder.faulty = recorder.milestones = calls  # Keeps the order of the calls.

    fit(recorder=recorder, losses={2: [NAN, 1.0], 3: [1.0, 1.0]})

    assert calls[:3] == [([0], 2), (2, 2), ([], 3)]


def _part(name: str) -> int:
    return 1 + finite.PARTS.index(name)


NAN, LOST = float("nan"), _part("parameters")


@pytest.mark.parametrize("part", ["data", "teacher", "loss", "gradient", "update"])
def test_the_first_non_finite_part_is_named_with_its_step(part: str) -> None:
    # It is logged at step 6, when later parts are not finite either.
    with pytest.raises(loop.NonFiniteLossError, match=r"nan at step 6; .*, at step 5;") as error:
        fit(losses={6: NAN}, faults={5: _part(part), 6: LOST})

    assert error.value.part == part
    assert error.value.of_rate == (part in ("loss", "gradient", "update"))


@pytest.mark.parametrize(("first_step", "part"), [(0, "checkpoint"), (8, "parameters")])
def test_non_finite_initial_and_trained_parameters_are_distinguished(
    first_step: int, part: str
) -> None:
    faults = dict.fromkeys(range(11), LOST)

    with pytest.raises(loop.NonFiniteLossError) as error:
        fit(first_step=first_step, faults=faults)

    assert (error.value.part, error.value.of_rate) == (part, False)


def test_the_fault_of_the_last_lost_student_is_reported() -> None:
    # The first student was lost before step 3, at which the other was finite.
    faults = {2: [_part("loss"), 0], 3: [LOST, 0], 4: [LOST, 0], 5: [LOST, _part("teacher")]}

    with pytest.raises(loop.NonFiniteLossError, match="at step 5;") as error:
        fit(faults=faults | {6: [LOST, LOST]}, losses={step: [1.0, 1.0] for step in range(11)})

    assert error.value.part == "teacher"


def test_a_state_with_a_non_finite_update_is_not_saved() -> None:
    recorder = Recorder()

    with pytest.raises(loop.NonFiniteLossError, match="at step 4;"):
        fit(recorder=recorder, faults={4: _part("update")})

    assert recorder.saved == []


def test_faults_are_not_logged() -> None:
    assert all("fault" not in metrics for _, metrics in fit(faults={99: 1})[1].logged)


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_run_is_saved_before_it_stops(after: int) -> None:
    recorder = Recorder(stop_after=after)

    with pytest.raises(loop.StoppedError, match=f"after step {after} of 10, which is saved"):
        fit(recorder=recorder)

    assert recorder.saved[-1] == (after, after)
    assert recorder.progress == list(range(1, after + 1))


def test_a_run_that_is_stopped_after_its_last_step_finishes() -> None:
    last, _ = fit(recorder=Recorder(stop_after=10))
    assert last == 10


def test_a_stopped_run_does_not_save_a_nan_state() -> None:
    recorder = Recorder(stop_after=5)

    with pytest.raises(loop.NonFiniteLossError):
        fit(recorder=recorder, losses={5: float("nan")})

    assert recorder.saved == [(4, 4)]


def test_step_time_and_the_share_of_input_waiting_are_logged() -> None:
    _, recorder = fit(seconds=(0.03, 0.01))

    for _, metrics in recorder.logged:
        assert 0.04 <= metrics["step_seconds"] < 0.4  # Sleeping may take longer, but not less.
        assert 0.3 < metrics["input_share"] < 0.99

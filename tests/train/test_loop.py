"""The loop, with effects that only remember."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from remem_jax.train import finite, loop


class Memory:
    """Effects that write down when they were called, and with what state."""

    def __init__(self, stop_after: int = 100) -> None:
        self.stop_after = stop_after
        self.logged: list[Any] = []
        self.saved: list[Any] = []
        self.milestones: list[Any] = []
        self.progress: list[int] = []
        self.faulty: list[Any] = []

    def effects(self) -> loop.Effects:
        return loop.Effects(
            log=lambda at, metrics: self.logged.append((at, metrics)),
            save=lambda at, state: self.saved.append((at, state)),
            milestone=lambda at, state: self.milestones.append((at, state)),
            progress=self.progress.append,
            faulty=lambda numbers, state: self.faulty.append((numbers, state)),
            stopping=lambda done: done >= self.stop_after,
        )


def fit(
    *,
    first_step: int = 0,
    losses: dict[int, Any] | None = None,
    faults: dict[int, Any] | None = None,
    memory: Memory | None = None,
    seconds: tuple[float, float] = (0.0, 0.0),
) -> tuple[Any, Memory]:
    """Ten steps whose state is the number of steps, logged every 3, saved every 4.

    Batches and steps take so many seconds.
    """
    memory = memory or Memory()

    def batches() -> Iterator[int]:
        while True:
            time.sleep(seconds[0])
            yield 1

    def step(state: int, batch: Any) -> tuple[int, Any]:
        time.sleep(seconds[1])
        loss, fault = (known or {} for known in (losses, faults))
        found = {"loss": loss.get(state + 1, 1.0)}
        return state + batch, found | ({"fault": fault.get(state + 1, 0)} if fault else {})

    last = loop.fit(
        first_step,
        step,
        batches(),  # pyright: ignore[reportArgumentType] - a batch of our own making.
        first_step=first_step,
        schedule=loop.Schedule(steps=10, milestones=(2, 10), log_every=3, save_every=4),
        effects=memory.effects(),
    )
    return last, memory


def test_every_step_is_done_once() -> None:
    last, memory = fit()
    assert (last, memory.progress) == (10, list(range(1, 11)))


def test_metrics_are_logged_on_schedule_and_at_the_end() -> None:
    assert [at for at, _ in fit()[1].logged] == [3, 6, 9, 10]


def test_states_are_saved_on_schedule_and_at_the_end() -> None:
    assert fit()[1].saved == [(4, 4), (8, 8), (10, 10)]


def test_milestones_see_the_state_after_their_step() -> None:
    assert fit()[1].milestones == [(2, 2), (10, 10)]


def test_a_run_goes_on_where_it_was_stopped() -> None:
    last, memory = fit(first_step=8)
    assert (last, memory.progress, memory.milestones) == (10, [9, 10], [(10, 10)])


def test_a_finished_run_does_nothing() -> None:
    last, memory = fit(first_step=10)
    assert (last, memory.progress) == (10, [])


def test_a_loss_that_is_no_number_stops_the_run_with_its_step() -> None:
    with pytest.raises(loop.NonFiniteLossError, match=r"nan at step 6; .* safe is 4"):
        fit(losses={6: float("nan")})


def test_nothing_is_saved_after_a_loss_that_is_no_number() -> None:
    memory = Memory()
    with pytest.raises(loop.NonFiniteLossError):
        loop.fit(
            0,
            lambda state, batch: (state + 1, {"loss": float("inf")}),
            itertools.repeat(1),  # pyright: ignore[reportArgumentType]
            first_step=0,
            schedule=loop.Schedule(steps=4, milestones=(4,), log_every=2, save_every=2),
            effects=memory.effects(),
        )
    assert memory.saved == []


@pytest.mark.parametrize("step", [2, 4])  # A milestone and a save; neither is logged.
def test_a_loss_that_is_no_number_is_seen_before_its_state_is_kept(step: int) -> None:
    with pytest.raises(loop.NonFiniteLossError, match=f"at step {step};"):
        fit(losses={step: float("nan")})


def test_one_diverged_student_does_not_stop_the_others() -> None:
    last, _ = fit(losses={6: [float("nan"), 1.0]})
    assert last == 10


def test_a_student_that_diverged_is_told_of_before_its_state_is_looked_at() -> None:
    memory = Memory()
    seen: list[Any] = []
    memory.faulty = memory.milestones = seen  # In the order of the calls.

    fit(memory=memory, losses={2: [NAN, 1.0], 3: [1.0, 1.0]})

    assert seen[:3] == [([0], 2), (2, 2), ([], 3)]


def _part(name: str) -> int:
    return 1 + finite.PARTS.index(name)


NAN, LOST = float("nan"), _part("parameters")


@pytest.mark.parametrize("part", ["data", "teacher", "loss", "gradient", "update"])
def test_what_was_not_finite_first_is_named_with_its_step(part: str) -> None:
    # Logged at step 6, when all that follows from it is lost too.
    with pytest.raises(loop.NonFiniteLossError, match=r"nan at step 6; .*, at step 5;") as caught:
        fit(losses={6: NAN}, faults={5: _part(part), 6: LOST})

    assert caught.value.part == part
    assert caught.value.of_rate == (part in ("loss", "gradient", "update"))


@pytest.mark.parametrize(("first_step", "part"), [(0, "checkpoint"), (8, "parameters")])
def test_parameters_that_training_starts_from_are_told_from_those_that_it_made(
    first_step: int, part: str
) -> None:
    faults = dict.fromkeys(range(11), LOST)

    with pytest.raises(loop.NonFiniteLossError) as caught:
        fit(first_step=first_step, faults=faults)

    assert (caught.value.part, caught.value.of_rate) == (part, False)


def test_of_students_the_one_that_was_lost_last_says_why() -> None:
    # The first was lost before step 3, where the other was sound.
    faults = {2: [_part("loss"), 0], 3: [LOST, 0], 4: [LOST, 0], 5: [LOST, _part("teacher")]}

    with pytest.raises(loop.NonFiniteLossError, match="at step 5;") as caught:
        fit(faults=faults | {6: [LOST, LOST]}, losses={step: [1.0, 1.0] for step in range(11)})

    assert caught.value.part == "teacher"


def test_a_state_is_not_saved_whose_update_was_not_finite() -> None:
    memory = Memory()

    with pytest.raises(loop.NonFiniteLossError, match="at step 4;"):
        fit(memory=memory, faults={4: _part("update")})

    assert memory.saved == []


def test_faults_are_not_logged() -> None:
    assert all("fault" not in metrics for _, metrics in fit(faults={99: 1})[1].logged)


@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_run_that_is_asked_to_stop_is_saved_first(after: int) -> None:
    memory = Memory(stop_after=after)

    with pytest.raises(loop.StoppedError, match=f"after step {after} of 10, which is saved"):
        fit(memory=memory)

    assert memory.saved[-1] == (after, after)
    assert memory.progress == list(range(1, after + 1))


def test_a_run_that_is_asked_to_stop_at_its_end_ends() -> None:
    last, _ = fit(memory=Memory(stop_after=10))
    assert last == 10


def test_a_state_that_is_no_number_is_not_saved_to_stop() -> None:
    memory = Memory(stop_after=5)

    with pytest.raises(loop.NonFiniteLossError):
        fit(memory=memory, losses={5: float("nan")})

    assert memory.saved == [(4, 4)]


def test_the_time_of_steps_and_the_share_of_waiting_are_logged() -> None:
    _, memory = fit(seconds=(0.03, 0.01))

    for _, metrics in memory.logged:
        assert 0.04 <= metrics["step_seconds"] < 0.4  # Sleeping may take longer, not less.
        assert 0.3 < metrics["input_share"] < 0.99

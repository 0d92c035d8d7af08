"""The plan of a run: what fits is trained, in order, and nothing that does not fit."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remem_jax.budget import plan
from remem_jax.budget.plan import STUDENTS, TEACHER, Limits, Speeds, Stage

METHODS = ("alone", "finetune", "remem")
LIMITS = Limits(
    METHODS,
    fixed=False,
    learning_rates=(1e-3, 3e-4, 3e-3),
    least_steps=100,
    most_steps=2000,
    least_teacher_steps=200,
    most_teacher_steps=600,
)
# An hour has 3,600 s: three methods of about a thousand steps.
SPEEDS = Speeds(
    augment=0.02,
    outputs=0.15,
    student=0.5,
    teacher=0.6,
    remem=1.2,
    begin_teacher=20,
    begin_students=10,
    begin_distilling=20,
    evaluation=2,
    test=20,
    report=15,
)
HOUR = 3600.0


def kinds(stages: tuple[Stage, ...]) -> list[tuple[str, str]]:
    return [(stage.kind, stage.method) for stage in stages]


def total(stages: tuple[Stage, ...]) -> float:
    methods = plan.methods_of(*stages)
    return sum(stage.seconds for stage in stages) + plan.closing(SPEEDS, methods)


def trained(stages: tuple[Stage, ...], value: float = 0.5) -> list[Stage]:
    return [stage._replace(value=value) for stage in stages]


def test_an_hour_has_all_methods_with_equal_steps_and_is_used() -> None:
    stages = plan.remaining(LIMITS, SPEEDS, HOUR)
    assert kinds(stages) == [
        (STUDENTS, "alone"),
        (TEACHER, "finetune"),
        (STUDENTS, "finetune"),
        (TEACHER, "remem"),
        (STUDENTS, "remem"),
    ]
    assert len({stage.steps for stage in stages if stage.kind == STUDENTS}) == 1
    assert 0.98 * HOUR < total(stages) <= HOUR


def test_little_time_has_no_remem_and_very_little_no_teacher() -> None:
    found = [
        {stage.method for stage in plan.remaining(LIMITS, SPEEDS, minutes * 60)}
        for minutes in range(2, 30)
    ]
    assert found[0] == {"alone"}
    assert found[-1] == set(METHODS)
    assert all(before <= after for before, after in itertools.pairwise(found))
    assert {"alone", "finetune"} in found


@pytest.mark.parametrize("method", METHODS)
def test_the_seconds_that_suffice_for_a_method_are_the_first_minute_that_has_it(
    method: str,
) -> None:
    seconds = plan.seconds_for(method, LIMITS, SPEEDS)
    assert seconds is not None
    assert method in plan.methods_of(*plan.remaining(LIMITS, SPEEDS, seconds))
    before = plan.methods_of(*plan.remaining(LIMITS, SPEEDS, seconds - 60))
    assert method not in before or seconds == 60


def test_a_method_that_cannot_get_enough_steps_has_no_sufficient_seconds() -> None:
    endless = SPEEDS._replace(begin_teacher=1e9)
    assert plan.seconds_for("finetune", LIMITS, endless) is None


@pytest.mark.parametrize(("seconds", "share"), [(380, 1.0), (2700, 0.5)])
def test_a_teacher_has_half_of_its_students_steps_unless_they_are_few(
    seconds: float, share: float
) -> None:
    _, teacher, student, *_ = plan.remaining(LIMITS, SPEEDS, seconds)
    assert teacher.kind == TEACHER
    assert teacher.steps == round(share * student.steps)


def test_methods_that_the_user_named_are_all_trained() -> None:
    stages = plan.remaining(LIMITS._replace(fixed=True), SPEEDS, 120.0)
    assert {stage.method for stage in stages} == set(METHODS)
    assert all(stage.steps >= 1 for stage in stages)


def test_steps_that_the_user_set_are_kept() -> None:
    limits = LIMITS._replace(student_steps=50, teacher_steps=(10, 30))
    stages = plan.remaining(limits, SPEEDS, HOUR)
    assert {(stage.kind, stage.steps) for stage in stages} == {(STUDENTS, 50), (TEACHER, 30)}


@settings(max_examples=60, deadline=None)
@given(seconds=st.floats(150, 30_000), slower=st.floats(0.3, 4))
def test_a_plan_fits_and_so_does_its_rest_on_another_machine(seconds: float, slower: float) -> None:
    stages = plan.remaining(LIMITS, SPEEDS, seconds)
    assert total(stages) <= seconds
    first, *_ = trained(stages[:1])
    left = seconds - first.seconds * slower
    speeds = SPEEDS.scaled(slower)
    rest = plan.remaining(LIMITS, speeds, left, [first])
    methods = plan.methods_of(first, *rest)
    assert not rest or sum(stage.seconds for stage in rest) + plan.closing(speeds, methods) <= left
    for stage in rest:
        if stage.kind == STUDENTS and not stage.variant and not first.variant:
            assert plan.COMPARABLE * first.steps - 1 <= stage.steps <= first.steps


def test_with_time_to_spare_learning_rates_are_searched_by_halving() -> None:
    stages = plan.remaining(LIMITS, SPEEDS, 4 * HOUR)
    alone = [stage for stage in stages if stage.method == "alone"]
    assert [(stage.variant, len(stage.learning_rates)) for stage in alone] == [("rung", 3), ("", 0)]
    rung, last = alone
    assert (rung.steps, last.steps) == (500, LIMITS.most_steps)
    assert total(stages) <= 4 * HOUR


def test_methods_after_one_with_a_single_learning_rate_have_a_single_one_too() -> None:
    alone = Stage(STUDENTS, "alone", LIMITS.most_steps, LIMITS.learning_rates[:1], value=0.5)
    rest = plan.remaining(LIMITS, SPEEDS, 6 * HOUR, [alone])
    assert kinds(rest) == [
        (TEACHER, "finetune"),
        (STUDENTS, "finetune"),
        (TEACHER, "remem"),
        (STUDENTS, "remem"),
    ]
    assert {stage.variant for stage in rest} == {""}


def test_a_teacher_leaves_its_student_its_time_and_may_take_that_of_later_methods() -> None:
    stages = plan.remaining(LIMITS, SPEEDS, HOUR)
    alone, teacher, student, *others = stages
    before = trained((alone,))
    left = HOUR - alone.seconds
    assert plan.seconds_of_first(stages, SPEEDS, HOUR, []) == alone.seconds
    assert plan.seconds_of_first(stages[1:], SPEEDS, left, before) == 2 * teacher.seconds
    # Of the last method, nothing but the time that was not planned is left.
    last = stages[3:]
    done = [*before, *trained((teacher, student))]
    left -= teacher.seconds + student.seconds
    assert others == list(last)
    found = plan.seconds_of_first(last, SPEEDS, left, done)
    assert last[0].seconds <= found <= 1.02 * last[0].seconds


def test_a_teacher_that_was_trained_has_a_student_though_the_machine_became_slow() -> None:
    stages = plan.remaining(LIMITS, SPEEDS, HOUR)
    done = trained(stages[:-1])
    slow = SPEEDS.scaled(1.8)
    left = stages[-1].seconds + plan.closing(slow, METHODS)
    rest = plan.remaining(LIMITS, slow, left, done)
    assert kinds(rest) == [(STUDENTS, "remem")]
    assert plan.COMPARABLE * done[0].steps <= rest[0].steps < done[0].steps


def test_a_rung_that_was_trained_decides_even_if_the_others_no_longer_fit() -> None:
    rung = trained(plan.remaining(LIMITS, SPEEDS, 4 * HOUR)[:1])
    stages = plan.remaining(LIMITS, SPEEDS, HOUR, rung)
    (alone,) = [stage for stage in stages if stage.method == "alone"]
    assert alone.learning_rates == ()
    assert [stage.variant for stage in stages if stage.method != "alone"].count("rung") == 0


def test_a_finished_run_trains_its_best_student_again_and_the_one_alone() -> None:
    done = trained(plan.remaining(LIMITS, SPEEDS, HOUR))
    done[2] = done[2]._replace(value=0.9)  # The student of the fine-tuned teacher.
    stages = plan.remaining(LIMITS, SPEEDS, HOUR, done)
    assert kinds(stages) == [(STUDENTS, "alone"), (STUDENTS, "finetune")]
    assert {stage.name for stage in stages} == {
        "students/alone/longer_2",
        "students/finetune/longer_2",
    }
    assert all(stage.steps > 1.5 * done[0].steps for stage in stages)
    again = plan.remaining(LIMITS, SPEEDS, 10 * HOUR, [*done, *trained(stages)])
    assert {stage.variant for stage in again} == {"longer_3"}


def test_a_finished_run_without_time_trains_nothing() -> None:
    done = trained(plan.remaining(LIMITS, SPEEDS, HOUR))
    assert plan.remaining(LIMITS, SPEEDS, 60.0, done) == ()


@pytest.mark.parametrize("count", range(6))
def test_a_resumed_plan_has_the_stages_that_are_left(count: int) -> None:
    stages = plan.remaining(LIMITS, SPEEDS, HOUR)
    left = HOUR - sum(stage.seconds for stage in stages[:count])
    rest = plan.remaining(LIMITS, SPEEDS, left, trained(stages[:count]))
    assert kinds(rest) == kinds(stages[count:])


def test_a_stage_survives_json() -> None:
    stage = plan.remaining(LIMITS, SPEEDS, 4 * HOUR)[0]._replace(value=0.5)
    assert plan.read({**stage._asdict(), "learning_rates": list(stage.learning_rates)}) == stage

"""The stages of a run, and the time left, against times that are known in closed form."""

import pytest

from remem_jax.display.board import Board, Planned, Stage


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Board:
    return Board(clock=clock)


def steps(clock: Clock, stage: Stage, first: int, last: int, *, seconds: float) -> None:
    """Reports steps that take some seconds each."""
    for step in range(first, last + 1):
        clock.now += seconds
        stage.advance(step)


def titles(board: Board) -> tuple[list[str], list[str]]:
    """Returns the titles of the stages that are done, and of those to come."""
    return [stage.title for stage in board.finished], [stage.title for stage in board.to_come]


def test_a_rate_does_not_count_the_first_step_which_compiles(clock: Clock, board: Board) -> None:
    stage = board.begin("teacher", 100)
    clock.now += 60.0

    steps(clock, stage, 1, 21, seconds=2.0)

    assert stage.rate() == pytest.approx(0.5)
    assert stage.seconds_left() == pytest.approx(79 * 2.0)


def test_a_rate_does_not_count_steps_of_earlier_starts(clock: Clock, board: Board) -> None:
    stage = board.begin("teacher", 100, first_step=80)

    steps(clock, stage, 81, 91, seconds=1.0)

    assert stage.rate() == pytest.approx(1.0)
    assert stage.seconds_left() == pytest.approx(9.0)


def test_the_time_left_passes_during_a_step(clock: Clock, board: Board) -> None:
    stage = board.begin("teacher", 10)
    steps(clock, stage, 1, 5, seconds=4.0)

    clock.now += 3.0

    assert stage.seconds_left() == pytest.approx(5 * 4.0 - 3.0)


def test_there_is_no_rate_after_so_short_a_time_that_the_device_may_lag_behind(
    clock: Clock, board: Board
) -> None:
    stage = board.begin("teacher", 1000)

    steps(clock, stage, 1, 50, seconds=0.01)

    assert stage.rate() is None
    assert stage.seconds_left() is None


def test_the_time_left_is_unknown_until_each_kind_of_stage_was_measured(
    clock: Clock, board: Board
) -> None:
    board.plan(
        [Planned("teacher", 10, "SGD"), Planned("students", 20, "kd"), Planned("more", 5, "kd")]
    )

    with board.begin("teacher", 10) as teacher:
        steps(clock, teacher, 1, 10, seconds=3.0)
        during = board.seconds_left()
    with board.begin("students", 20) as students:
        before_a_step = board.seconds_left()
        steps(clock, students, 1, 12, seconds=2.0)
        left = board.seconds_left()
    at_the_end = board.seconds_left()

    assert during is None
    assert before_a_step is None
    assert left == pytest.approx(8 * 2.0 + 5 * 2.0)
    assert at_the_end == pytest.approx(5 * 2.0)


def test_work_that_is_not_steps_is_scaled(clock: Clock, board: Board) -> None:
    board.plan([Planned("a", 100.0, "kd"), Planned("b", 300.0, "kd")])

    with board.begin("a", 11) as stage:
        steps(clock, stage, 1, 11, seconds=1.0)

    assert board.seconds_left() == pytest.approx(33.0)


def test_a_stage_without_a_measured_speed_makes_the_time_left_unknown(
    clock: Clock, board: Board
) -> None:
    board.plan([Planned("a", 10, "kd"), "report"])

    with board.begin("a", 10) as stage:
        steps(clock, stage, 1, 10, seconds=1.0)

    assert board.seconds_left() is None


def test_parts_of_a_stage_count_together(clock: Clock, board: Board) -> None:
    board.plan([Planned("students of step 3", 10, "kd"), Planned("students of step 9", 10, "kd")])

    with board.begin("students of step 3, 0 to 2", 10, share=0.75) as first:
        steps(clock, first, 1, 9, seconds=3.0)
        left = board.seconds_left()
    with board.begin("students of step 3, 3 to 3", 10, share=0.25) as second:
        steps(clock, second, 1, 9, seconds=1.0)
        left_of_second = board.seconds_left()

    # A step of all students takes 4 s.
    assert left == pytest.approx(1 * 3.0 + 10 * 1.0 + 10 * 4.0)
    assert left_of_second == pytest.approx(1 * 1.0 + 10 * 4.0)
    assert titles(board) == (
        ["students of step 3, 0 to 2", "students of step 3, 3 to 3"],
        ["students of step 9"],
    )


def test_a_retry_is_the_same_stage_once_more(clock: Clock, board: Board) -> None:
    board.plan([Planned("teacher", 10, "SAM"), Planned("other teacher", 10, "SAM")])
    with board.begin("teacher", 10) as failed:
        steps(clock, failed, 1, 5, seconds=2.0)

    with board.begin("teacher, retry 1", 10) as retry:
        steps(clock, retry, 1, 6, seconds=2.0)
        left = board.seconds_left()

    assert left == pytest.approx(4 * 2.0 + 10 * 2.0)
    assert [stage.missing for stage in board.finished] == ["step 5 of 10", "step 6 of 10"]


def test_a_deadline_replaces_the_estimate(clock: Clock, board: Board) -> None:
    board.plan(["students"])
    board.until(60.0)
    clock.now += 15.0

    assert board.seconds_left() == pytest.approx(45.0)
    clock.now += 100.0
    assert board.seconds_left() == 0.0
    board.until(None)
    assert board.seconds_left() is None


def test_planned_stages_before_one_that_begins_were_finished_earlier(board: Board) -> None:
    board.plan(["scratch", "teacher", "students of step 4", "students of step 40"])

    board.begin("students of step 40", 10).close()

    assert titles(board) == (
        ["scratch", "teacher", "students of step 4", "students of step 40"],
        [],
    )
    assert [stage.seconds is None for stage in board.finished] == [True, True, True, False]


@pytest.mark.parametrize(
    ("title", "is_planned"),
    [
        ("students of step 4", True),
        ("students of step 4, 0 to 9", True),
        ("students of step 4 again", True),
        ("students of step 40", False),
    ],
)
def test_a_stage_may_have_more_words_than_its_plan(
    board: Board, title: str, is_planned: bool
) -> None:
    board.plan(["students of step 4"])

    board.begin(title, 10)

    assert (board.to_come == ()) == is_planned


def test_a_new_plan_keeps_what_is_done(board: Board) -> None:
    board.plan(["teacher", "students"])
    board.begin("teacher", 10).close()

    board.plan(["another teacher", "its students"])

    assert titles(board) == (["teacher"], ["another teacher", "its students"])


def test_a_run_that_has_ended_has_no_stages_to_come(board: Board) -> None:
    board.plan(["teacher", "students"])

    board.complete()

    assert titles(board) == (["teacher", "students"], [])


def test_a_stage_that_is_not_planned_is_listed_only_if_it_takes_a_second(
    clock: Clock, board: Board
) -> None:
    for seconds in (0.5, 1.5):
        with board.begin(f"scan of {seconds} s", None):
            clock.now += seconds

    assert titles(board)[0] == ["scan of 1.5 s"]


def test_a_stage_within_another_ends_with_it(board: Board) -> None:
    board.plan(["outer"])
    outer = board.begin("outer", None)
    board.begin("inner", None)

    outer.close()
    outer.close()

    assert board.running == ()
    assert titles(board)[0] == ["outer"]


def test_the_latest_result_of_each_model_is_kept_the_best_first(board: Board) -> None:
    board.result("alone", 0.5, "validation")
    board.result("ReMem", 0.9, "validation")
    board.result("alone", 0.7, "validation")
    board.result("ReMem", 0.6, "test")

    assert [(each.model, each.accuracy, each.split) for each in board.results] == [
        ("alone", 0.7, "validation"),
        ("ReMem", 0.6, "test"),
    ]


def test_a_run_forgets_the_one_before(board: Board) -> None:
    board.plan(["teacher"])
    board.result("alone", 0.5, "validation")
    board.until(9.0)
    board.begin("teacher", 10)

    board.begin_run("Trial 2 of 3")

    assert (board.title, board.running, board.finished) == ("Trial 2 of 3", (), ())
    assert (board.results, board.seconds_left()) == ((), None)

"""Which stages a run with a time budget trains, and for how many steps: a pure function.

The plan is made again after every stage, from the stages done, the speeds measured and the time
left. docs/distil.md gives the rules and their reasons.
"""

import bisect
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from remem_jax.methods import ALONE, METHODS

TEACHER, STUDENTS = "teacher", "students"
# A rung tries all learning rates for this fraction of the steps; the best goes on to all of them.
RUNG = 1 / 4
# A teacher gets this fraction of its student's steps, if that trains it enough: it is larger and
# overfits sooner, and the student is what counts.
TEACHER_SHARE = 1 / 2
# A method is left out rather than trained for less than this fraction of the steps of the methods
# before, with which it is compared.
COMPARABLE = 1 / 2
# A stage whose steps are slower than planned may take so many times its seconds before its schedule
# is shortened. The time of a teacher's steps is known least, and it takes little of the run.
OVERRUN = {TEACHER: 2.0, STUDENTS: 1.0}
# Training again for longer must have at least this many times the steps; and at most so many times
# the steps beyond which little is gained.
LONGER, MOST = 1.5, 4
TRIAL, AGAIN = "rung", "longer"  # Variants of stages.


class Limits(NamedTuple):
    """What does not change while a run is planned again.

    Attributes:
        methods: Methods in the order of their training.
        fixed: Whether the user named the methods, so that none is left out.
        learning_rates: Learning rates of students, the first choice first.
        least_steps: Steps of a student below which a method is left out; a second teacher, whose
            time the other students could use, needs twice as many.
        most_steps: Steps of a student beyond which other learning rates are tried instead.
        least_teacher_steps: Steps of a teacher below which it gets as many as its student.
        most_teacher_steps: Steps of a teacher beyond which it would overfit.
        student_steps: Steps of students that the user set; 0 if they are planned.
        teacher_steps: Steps of teachers that the user set; empty if they are planned.
    """

    methods: tuple[str, ...]
    fixed: bool
    learning_rates: tuple[float, ...]
    least_steps: int
    most_steps: int
    least_teacher_steps: int
    most_teacher_steps: int
    student_steps: int = 0
    teacher_steps: tuple[int, ...] = ()


class Speeds(NamedTuple):
    """Seconds that the parts of a run take on this device.

    Attributes:
        augment: Augmenting a batch for students.
        outputs: The teacher's outputs for a batch.
        student: A step of one student.
        teacher: A step of a teacher with plain SGD.
        remem: A step of a teacher with SAM.
        begin_teacher: Beginning to train a teacher: compilation, first state.
        begin_students: Beginning to train students without a teacher.
        begin_distilling: Beginning to train students with a teacher.
        evaluation: An evaluation on validation.
        test: Testing the selected student and teacher of a method.
        report: Everything after the tests.
    """

    augment: float
    outputs: float
    student: float
    teacher: float
    remem: float
    begin_teacher: float
    begin_students: float
    begin_distilling: float
    evaluation: float
    test: float
    report: float

    def scaled(self, factor: float) -> "Speeds":
        """Returns the speeds on a machine that has become slower by a factor."""
        return Speeds(*(factor * seconds for seconds in self))


class Stage(NamedTuple):
    """A stage of a run: the training of a teacher, or of students.

    Attributes:
        kind: `TEACHER` or `STUDENTS`.
        method: Name of the method.
        steps: Number of steps.
        learning_rates: Learning rates of students; empty for the best of the rung before.
        variant: "" for the stage whose student is compared; "rung" for one that only tries learning
            rates; "longer_2" and so on for one that trains again, for more steps.
        seconds: Seconds planned, or taken if it is done.
        value: Best validation metric of its models, if it is done.
        teacher_step: Step of the only teacher that its students learn from; 0 for all of them.
    """

    kind: str
    method: str
    steps: int
    learning_rates: tuple[float, ...] = ()
    variant: str = ""
    seconds: float = 0.0
    value: float | None = None
    teacher_step: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the stage in a run."""
        return self.kind, self.method, self.variant

    @property
    def name(self) -> str:
        """Name of the stage: its folder in that of the run."""
        if self.kind == TEACHER:
            return f"teachers/{self.method}"
        return "/".join(filter(None, ("students", self.method, self.variant)))


def read(record: dict[str, Any]) -> Stage:
    """Returns a stage from its record (`_asdict`) in JSON."""
    return Stage(**{**record, "learning_rates": tuple(record["learning_rates"])})


def remaining(
    limits: Limits, speeds: Speeds, seconds: float, done: Sequence[Stage] = ()
) -> tuple[Stage, ...]:
    """Plans the stages that are left.

    Args:
        limits: See `Limits`.
        speeds: Current speeds.
        seconds: Seconds left for them, the tests and the report.
        done: Stages that were trained.

    Returns:
        The stages in the order of their training, each with its planned seconds.
    """
    compared = {
        each.method: each.steps for each in done if each.kind == STUDENTS and not each.variant
    }
    before = {stage.key for stage in done}
    most = most_steps(limits, done)
    comparable = [round(COMPARABLE * steps) for steps in compared.values()]

    def least(methods: Sequence[str]) -> int:
        """Returns the steps below which the last method is left out; see `Limits`."""
        teachers = sum(METHODS[method].has_teacher for method in methods)
        begun = (TEACHER, methods[-1], "") in before
        wanted = (1 if begun else max(teachers, 1)) * limits.least_steps
        return limits.student_steps or min(most, max([wanted, *comparable]))

    def stages(methods: Sequence[str], steps: int, rates: int = 1) -> tuple[Stage, ...]:
        planned = [
            stage
            for method in methods
            if method not in compared
            for stage in _of_method(
                limits, method, steps, 2 if (STUDENTS, method, TRIAL) in before else rates
            )
        ]
        return tuple(_timed(stage, speeds) for stage in planned if stage.key not in before)

    def fits(methods: Sequence[str], steps: int, rates: int = 1) -> bool:
        needed = sum(stage.seconds for stage in stages(methods, steps, rates))
        return needed + closing(speeds, methods) <= seconds

    methods = list(limits.methods)
    while not limits.fixed and len(methods) > 1 and not fits(methods, least(methods)):
        if methods[-1] in compared:
            break
        methods.pop()
    if compared.keys() >= set(methods):
        return _longer(limits, speeds, seconds, done)
    # Bisection finds the smallest number of steps that is too large.
    too_many = (
        bisect.bisect_left(range(2, most + 1), True, key=lambda at: not fits(methods, at)) + 2
    )
    steps = limits.student_steps or too_many - 1
    # All methods that are compared try learning rates, or none does.
    search = all((STUDENTS, method, TRIAL) in before for method in compared)
    rates = len(limits.learning_rates) if search and steps == limits.most_steps else 1
    while rates > 1 and not fits(methods, steps, rates):
        rates -= 1
    return stages(methods, steps, rates)


def most_steps(limits: Limits, done: Sequence[Stage]) -> int:
    """Returns the most steps of students that are compared with those of some stages."""
    compared = [each.steps for each in done if each.kind == STUDENTS and not each.variant]
    return min([limits.student_steps or limits.most_steps, *compared])


def seconds_for(
    method: str, limits: Limits, speeds: Speeds, done: Sequence[Stage] = ()
) -> float | None:
    """Returns the least seconds, in whole minutes, whose plan trains a method's student.

    Args:
        method: Name of the method.
        limits: See `Limits`.
        speeds: Current speeds.
        done: Stages that were trained.

    Returns:
        Seconds left for everything that is not done; None if even a week has no such plan.
    """
    minutes = range(1, 7 * 24 * 60)
    least = bisect.bisect_left(
        minutes,
        True,
        key=lambda at: method in methods_of(*remaining(limits, speeds, 60 * at, done)),
    )
    return 60.0 * minutes[least] if least < len(minutes) else None


def seconds_of_first(
    stages: Sequence[Stage], speeds: Speeds, seconds: float, done: Sequence[Stage]
) -> float:
    """Returns the seconds after which the first of the stages that are left should have ended.

    Args:
        stages: Return value of `remaining`.
        speeds: Current speeds.
        seconds: Seconds left for the stages, the tests and the report.
        done: Stages that were trained.
    """
    first, *later = stages
    # A teacher must leave its students their time.
    of_method = sum(stage.seconds for stage in later if stage.method == first.method)
    last = closing(speeds, methods_of(*done, *stages))
    return min(OVERRUN[first.kind] * first.seconds, seconds - last - of_method)


def closing(speeds: Speeds, methods: Collection[str]) -> float:
    """Returns the seconds of the tests and the report."""
    return len(methods) * speeds.test + speeds.report


def methods_of(*stages: Stage) -> set[str]:
    """Returns the methods whose students some stages train."""
    return {stage.method for stage in stages if stage.kind == STUDENTS}


def _of_method(limits: Limits, method: str, steps: int, rates: int) -> list[Stage]:
    stages = []
    if METHODS[method].has_teacher:
        planned = max(round(TEACHER_SHARE * steps), min(steps, limits.least_teacher_steps), 1)
        planned = min(planned, limits.most_teacher_steps)
        stages.append(Stage(TEACHER, method, max(limits.teacher_steps, default=planned)))
    chosen = limits.learning_rates[:1]
    if rates > 1:
        rung = max(round(RUNG * steps), 1)
        stages.append(Stage(STUDENTS, method, rung, limits.learning_rates[:rates], TRIAL))
        chosen = ()
    return [*stages, Stage(STUDENTS, method, steps, chosen)]


def _timed(stage: Stage, speeds: Speeds) -> Stage:
    """Returns a stage with the seconds that it takes."""
    return stage._replace(seconds=begin(stage, speeds) + stage.steps * step(stage, speeds))


def begin(stage: Stage, speeds: Speeds) -> float:
    """Returns the seconds of a stage besides its steps."""
    if stage.kind == TEACHER:
        return speeds.begin_teacher + speeds.evaluation
    students = max(len(stage.learning_rates), 1)
    distils = METHODS[stage.method].has_teacher
    first = speeds.begin_distilling if distils else speeds.begin_students
    return first + students * speeds.evaluation


def step(stage: Stage, speeds: Speeds) -> float:
    """Returns the seconds of a step of a stage."""
    method = METHODS[stage.method]
    if stage.kind == TEACHER:
        return speeds.teacher if method.rho == 0 else speeds.remem
    outputs = speeds.outputs if method.has_teacher else 0.0
    return speeds.augment + outputs + max(len(stage.learning_rates), 1) * speeds.student


def _longer(
    limits: Limits, speeds: Speeds, seconds: float, done: Sequence[Stage]
) -> tuple[Stage, ...]:
    """Plans to train the best student again, for more steps; and the one alone for as many."""
    students = [stage for stage in done if stage.kind == STUDENTS and stage.value is not None]
    if not students or limits.student_steps:
        return ()
    best = max(students, key=lambda stage: stage.value or 0.0)
    methods = [name for name in limits.methods if name in (ALONE, best.method)]
    number = 2 + len({each.variant for each in students if each.variant.startswith(AGAIN)})

    def stages(steps: int) -> tuple[Stage, ...]:
        planned = [Stage(STUDENTS, name, steps, (), f"{AGAIN}_{number}") for name in methods]
        return tuple(_timed(stage, speeds) for stage in planned)

    left = seconds - closing(speeds, methods_of(*done))
    none, one = (sum(stage.seconds for stage in stages(steps)) for steps in (0, 1))
    steps = min(math.floor((left - none) / max(one - none, 1e-9)), MOST * limits.most_steps)
    return stages(steps) if steps >= LONGER * max(stage.steps for stage in students) else ()

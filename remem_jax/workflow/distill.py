"""Students: for every teacher, one per point of a small grid, trained in lockstep."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax import models, optim
from remem_jax.records import Apply, Settings, Variables
from remem_jax.storage import checkpoints, results
from remem_jax.train import lockstep, loop, state, steps
from remem_jax.workflow import parts
from remem_jax.workflow.finetune import Teachers

NO_TEACHER: Variables = {}


class Students:
    """All students of a run: one architecture, one compiled step.

    Attributes:
        measure: Metrics of a student on a split.
    """

    def __init__(self, run: parts.Run) -> None:
        """Makes the model and its step."""
        settings = run.config.student
        self._run, self._settings = run, settings
        key = jax.random.fold_in(jax.random.key(run.config.seed), 1)
        init_key, self._view_key, dropout_key = jax.random.split(key, 3)
        model = models.make(
            settings.model,
            classes=len(run.dataset.classes),
            stem=settings.stem,
        )
        self._first = models.init(model, init_key, run.config.data.image_size)
        self._tx = optim.sgd(
            optim.warmup_cosine(peak=1.0, steps=settings.steps, warmup_steps=settings.warmup_steps),
            momentum=settings.momentum,
            nesterov=True,
            weight_decay=settings.weight_decay,
        )
        self._step = jax.jit(
            steps.make_student_step(models.train_apply(model), self._tx, key=dropout_key),
            donate_argnums=0,
        )
        self.measure = parts.Measure(run, models.evaluation_apply(model), settings.batch_size)

    @property
    def parameters(self) -> int:
        """Number of trained values of a student."""
        return sum(leaf.size for leaf in jax.tree.leaves(self._first["params"]))

    def from_scratch(self) -> dict[str, Any]:
        """Trains the grid's learning rates without a teacher; see `_train_group`."""
        grid = [Settings(float(rate), 1.0, 0.0) for rate in self._settings.learning_rates]
        classes = len(self._run.dataset.classes)

        def no_teacher(variables: Variables, images: jax.Array) -> jax.Array:
            # With weight 0 these logits count for nothing, and the compiled step is shared.
            del variables
            return jnp.zeros((images.shape[0], classes))

        lessons = self._lessons(no_teacher)
        group = self._train_group("students/scratch", grid, lessons, NO_TEACHER)
        for student in group["students"]:
            student.update(temperature=None, weight=None)
        return {"method": "scratch", "teacher_step": None, **group}

    def of(self, teachers: Teachers) -> list[dict[str, Any]]:
        """Trains the whole grid on each of the teachers; see `_train_group`."""
        axes = (
            self._settings.learning_rates,
            self._settings.temperatures,
            self._settings.weights,
        )
        grid = [Settings(*map(float, point)) for point in itertools.product(*axes)]
        lessons = self._lessons(teachers.apply)
        groups = []
        for record in teachers.records:
            at = record["step"]
            part = f"students/{teachers.method}/step_{at}"
            group = self._train_group(part, grid, lessons, teachers.variables(at))
            groups.append({"method": teachers.method, "teacher_step": at, **group})
        return groups

    def best_of(self, part: str) -> Variables:
        """Variables of the best student of a group."""
        return checkpoints.load_tree(self._run.workdir / part / "best", self._first)

    def _lessons(self, teach: Apply) -> lockstep.TeacherPass:
        """The pass of the teachers of one method, compiled once for all their checkpoints."""
        view = parts.train_view(self._run)
        return jax.jit(lockstep.make_teacher_pass(teach, view, key=self._view_key))

    def _train_group(
        self,
        part: str,
        grid: Sequence[Settings],
        lessons: lockstep.TeacherPass,
        teacher: Variables,
    ) -> dict[str, Any]:
        """Trains the students of one teacher; does nothing where that is done.

        Returns:
            "part", "seconds", and "students": settings, metrics on validation, and whether the
            loss stayed finite, of each. The best one's variables are kept.
        """
        run, folder = self._run, self._run.workdir / part
        before = results.read(folder / "result.json")
        if before:
            return before
        validation: list[dict[str, float]] = []

        def milestone(at: int, now: lockstep.States) -> None:
            validation[:] = [self.measure(one.variables, "validation") for one in now]
            parts.log_validation(run, part, at, [one[run.dataset.metric] for one in validation])

        every = np.linspace(0, self._settings.steps, self._settings.evaluations + 1)[1:]
        students, seconds = parts.train(
            run,
            part,
            tuple(state.create(self._first, self._tx) for _ in grid),
            lockstep.make_step(lessons, teacher, self._step, grid),
            batch_size=self._settings.batch_size,
            steps=self._settings.steps,
            milestones=tuple(round(float(at)) for at in every),
            milestone=milestone,
        )
        if not validation:  # Killed between the last checkpoint and the result.
            milestone(self._settings.steps, students)
        records = [
            {
                "student": i,
                **own._asdict(),
                "validation": metrics,
                "diverged": not np.isfinite(metrics["loss"]),
            }
            for i, (own, metrics) in enumerate(zip(grid, validation, strict=True))
        ]
        best = select(records, run.dataset.metric)
        checkpoints.save_tree(folder / "best", dict(students[best["student"]].variables))
        result = {"part": part, "seconds": seconds, "students": records}
        results.write(folder / "result.json", result)
        checkpoints.remove(folder / parts.CHECKPOINTS)
        return results.finite(result)


def select(records: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """The record that is best on validation, of those that did not diverge.

    Equals are told apart by the lower loss. Raises `NonFiniteLossError` if all diverged.
    """

    def rank(record: dict[str, Any]) -> tuple[float, float]:
        metrics = record["validation"]
        return metrics[metric], -metrics["loss"]

    sound = [record for record in records if not record["diverged"]]
    if not sound:
        raise loop.NonFiniteLossError(
            "Every student diverged on validation; lower config.student.learning_rates."
        )
    return max(sound, key=rank)

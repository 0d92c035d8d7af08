"""What students are taught by: a teacher that answers at every step, or its answers, stored."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import mesh
from remem_jax.records import Outputs, TeacherApply, Variables
from remem_jax.storage import files, identity, outputs, read_ahead
from remem_jax.train import lockstep
from remem_jax.workflow import context
from remem_jax.workflow.remem import finetune

# Opens a teacher, for as many steps as are wanted.
Teacher = Callable[[], contextlib.AbstractContextManager[lockstep.Teach]]


@contextlib.contextmanager
def none() -> Iterator[lockstep.Teach]:
    """No teacher: students learn from labels alone."""
    yield lambda step, images: None


def live(answer: TeacherApply, load: Callable[[], Variables]) -> Teacher:
    """A teacher that answers at every step.

    Args:
        answer: It in evaluation mode, jitted.
        load: Loads its variables.
    """

    @contextlib.contextmanager
    def opened() -> Iterator[lockstep.Teach]:
        variables = load()
        yield lambda step, images: answer(variables, images)

    return opened


def of_teacher(
    run: context.Run, answer: TeacherApply, teachers: finetune.Teachers, step: int
) -> Teacher:
    """The teacher after so many steps: live, or with its answers stored for later students.

    What is stored is exact: a student that learns from it is the student that would have learned
    from the teacher. Answers are found again by all that decides them (`_facts`), also by another
    run, with another student or grid; what is not stored yet is answered live, and stored. Logits
    alone are stored: the features of a batch are a hundred times as large.
    """

    def load() -> Variables:
        return teachers.load(step)

    if not run.config.student.store_outputs:
        return live(answer, load)
    settings, classes = run.config.student, len(run.dataset.classes)

    @contextlib.contextmanager
    def opened() -> Iterator[lockstep.Teach]:
        variables = load()
        with (
            outputs.StoredOutputs(
                folder=files.cache() / "outputs",
                facts=_facts(run, teachers, variables),
                steps=settings.steps,
                shape=(settings.batch_size // jax.process_count(), classes),
                dtype=np.float32,  # As all models have their logits.
                process=(jax.process_index(), jax.process_count()),
            ) as stored,
            read_ahead.ReadAhead(stored) as kept,
        ):
            answers = _Answers(
                kept, lambda images: answer(variables, images).logits, mesh.batch_sharding(run.mesh)
            )
            yield answers
            answers.flush()
        logging.info(
            "%s, step %d: %d answers were stored before, %d were not.",
            teachers.stage,
            step,
            answers.found,
            answers.asked,
        )

    return opened


class _Answers:
    """Answers a step from what is stored, or asks the teacher and stores what it says.

    The host waits neither for the disk nor, where several processes make one run, for the others
    at a step; see `read_ahead`.

    Attributes:
        found: Answers that were stored.
        asked: Answers that the teacher gave.
    """

    def __init__(
        self,
        kept: read_ahead.ReadAhead,
        answer: Callable[[jax.Array], jax.Array],
        sharding: jax.sharding.NamedSharding,
    ) -> None:
        self.found, self.asked = 0, 0
        self._kept, self._answer, self._sharding = kept, answer, sharding
        self._said: tuple[int, jax.Array] | None = None

    def __call__(self, step: int, images: jax.Array) -> Outputs:
        stored = self._kept.read(step)
        if stored is None:
            return Outputs(self._ask(step, images))
        self.found += 1
        shape = (len(images), stored.shape[1])
        return Outputs(jax.make_array_from_process_local_data(self._sharding, stored, shape))

    def _ask(self, step: int, images: jax.Array) -> jax.Array:
        self.asked += 1
        logits = self._answer(images)
        self.flush()  # Of the step before: the device has it, and goes on with this one.
        self._said = step, logits
        return logits

    def flush(self) -> None:
        """Stores what the teacher said last."""
        if self._said is not None:
            step, logits = self._said
            self._kept.write(step, mesh.local_rows(logits))
            self._said = None


def _facts(run: context.Run, teachers: finetune.Teachers, variables: Variables) -> dict[str, Any]:
    """What decides a teacher's answers, as JSON has it."""
    data, config = run.config.data, run.config
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(run.fetch(variables)):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return {
        "teacher": digest.hexdigest(),
        **teachers.facts,
        "data": run.dataset.fingerprint,
        "decoding": identity.DECODING,
        "training": identity.TRAINING,
        "input": run.loader.kind,
        "source_size": run.dataset.source_size,
        "image_size": data.image_size,
        "crop_area": tuple(data.crop_area),
        "flip": run.dataset.flip,
        "batch_size": config.student.batch_size,
        "mixup": config.student.mixup,
        "flatten": config.student.flatten,
        "seed": config.seed,
        # Others round otherwise.
        "device": run.mesh.devices.flat[0].device_kind,
        "devices": run.mesh.size,
        "jax": jax.__version__,
    }

"""The outputs that students learn from: computed at every step, or computed once and stored."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from remem_jax import checks, mesh
from remem_jax.records import Outputs, TeacherApply, Variables
from remem_jax.settings import CALIBRATED, divisor
from remem_jax.storage import files, identity, outputs, read_ahead
from remem_jax.train import lockstep
from remem_jax.workflow import context, stages
from remem_jax.workflow.remem import finetune

# Opens the source of targets for some steps.
OpenTargets = Callable[[], contextlib.AbstractContextManager[lockstep.GetTargets]]


@contextlib.contextmanager
def none() -> Iterator[lockstep.GetTargets]:
    """Opens no targets: students learn from labels alone."""
    yield lambda step, images: None


def live(compute_targets: TeacherApply, load: Callable[[], Variables]) -> OpenTargets:
    """Returns targets that the teacher computes at every step.

    Args:
        compute_targets: From `student_setup.make_targets`.
        load: Loads the teacher's variables.
    """

    @contextlib.contextmanager
    def opened() -> Iterator[lockstep.GetTargets]:
        variables = load()
        yield lambda step, images: compute_targets(variables, images)

    return opened


def of_teacher(
    run: context.Run, compute_targets: TeacherApply, teachers: finetune.Teachers, step: int
) -> OpenTargets:
    """Returns the targets of the teacher's checkpoint at a step: live, or stored for reuse.

    Stored outputs are exact: students trained on them equal students trained on the live teacher.
    They are identified by everything that determines them (`_facts`), so that other runs, with
    other students or grids, reuse them. Steps that are not stored yet are computed, and stored.
    Only logits are stored: the features of a batch are a hundred times as large. Those of a
    calibrated teacher are stored before they are divided by its temperature, so that students of
    the same teacher without calibration reuse them.
    """
    if run.config.student.flatten == CALIBRATED:
        return _calibrated(_uncalibrated(run, compute_targets, teachers, step), teachers, step)
    return _uncalibrated(run, compute_targets, teachers, step)


def _uncalibrated(
    run: context.Run, compute_targets: TeacherApply, teachers: finetune.Teachers, step: int
) -> OpenTargets:
    """Returns the targets of a checkpoint, live or stored, without its temperature."""
    if not run.config.student.store_outputs:
        return live(compute_targets, lambda: teachers.load(step))
    settings, classes = run.config.student, len(run.dataset.classes)

    @contextlib.contextmanager
    def opened() -> Iterator[lockstep.GetTargets]:
        variables = teachers.load(step)
        with (
            outputs.StoredOutputs(
                folder=files.cache() / "outputs",
                facts=_facts(run, teachers, variables),
                steps=settings.steps,
                shape=(settings.batch_size // jax.process_count(), classes),
                dtype=np.float32,  # The logits of all models are float32.
                process=(jax.process_index(), jax.process_count()),
            ) as stored,
            read_ahead.ReadAhead(stored) as rows,
        ):
            targets = StoredTargets(
                rows,
                lambda images: compute_targets(variables, images).logits,
                mesh.batch_sharding(run.mesh),
            )
            yield targets
            targets.flush()
        logging.info(
            "%s, step %d: its outputs were stored for %d steps, and computed for %d.",
            stages.title(teachers.stage),
            step,
            targets.read,
            targets.computed,
        )

    return opened


def _calibrated(targets: OpenTargets, teachers: finetune.Teachers, step: int) -> OpenTargets:
    """Returns targets whose logits are divided by the temperature of the teacher's checkpoint."""

    @contextlib.contextmanager
    def opened() -> Iterator[lockstep.GetTargets]:
        calibration = teachers.record(step).get("calibration")
        if calibration is None:
            raise checks.SettingError(
                f"config.student.flatten is {CALIBRATED}, but an earlier version trained the "
                f"teacher in {teachers.folder} and did not calibrate it: set another --workdir."
            )
        divide = jax.jit(lambda logits: logits / calibration["temperature"])
        with targets() as get_targets:

            def divided(step: int, images: jax.Array) -> Outputs | None:
                found = get_targets(step, images)
                return found and found._replace(logits=divide(found.logits))

            yield divided

    return opened


class StoredTargets:
    """Reads the targets of a step if they are stored; otherwise computes and stores them.

    The host waits neither for the disk nor, if a run has several processes, for the others at
    each step; see `read_ahead`.

    Attributes:
        read: Number of steps whose targets were stored.
        computed: Number of steps whose targets the teacher computed.
    """

    def __init__(
        self,
        rows: read_ahead.ReadAhead,
        compute_logits: Callable[[jax.Array], jax.Array],
        sharding: jax.sharding.NamedSharding,
    ) -> None:
        self.read, self.computed = 0, 0
        self._rows, self._compute_logits, self._sharding = rows, compute_logits, sharding
        self._unwritten: tuple[int, jax.Array] | None = None

    def __call__(self, step: int, images: jax.Array) -> Outputs:
        stored = self._rows.read(step)
        if stored is None:
            return Outputs(self._compute(step, images))
        self.read += 1
        shape = (len(images), stored.shape[1])
        return Outputs(jax.make_array_from_process_local_data(self._sharding, stored, shape))

    def _compute(self, step: int, images: jax.Array) -> jax.Array:
        self.computed += 1
        logits = self._compute_logits(images)
        self.flush()  # Stores the previous step while the device computes this one.
        self._unwritten = step, logits
        return logits

    def flush(self) -> None:
        """Stores the targets that were computed last."""
        if self._unwritten is not None:
            step, logits = self._unwritten
            self._rows.write(step, mesh.local_rows(logits))
            self._unwritten = None


def _facts(run: context.Run, teachers: finetune.Teachers, variables: Variables) -> dict[str, Any]:
    """Returns everything that determines a teacher's outputs, as JSON values."""
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
        "flatten": divisor(config.student),
        **_added(config),
        **_unlabelled(run),
        "seed": config.seed,
        # Devices and versions differ in rounding.
        "device": run.mesh.devices.flat[0].device_kind,
        "devices": run.mesh.size,
        "jax": jax.__version__,
    }


def _added(config: ConfigDict) -> dict[str, Any]:
    """Returns settings that earlier versions lack and that change the augmented images.

    At their neutral values they are left out, so that outputs stored by earlier versions are read.
    """
    data, neutral = config.data, identity.ADDED["data"]
    names = ["balanced_sampling", "augment", "color_jitter", "random_erasing"]
    added = {name: data[name] for name in names if data[name] != neutral[name]}
    if data.augment == "rand":
        added |= {name: data[name] for name in ("augment_operations", "augment_magnitude")}
    return added | ({"cutmix": config.student.cutmix} if config.student.cutmix else {})


def _unlabelled(run: context.Run) -> dict[str, Any]:
    """Returns the unlabelled images of a run and their share; empty if there are none."""
    images = run.dataset.unlabelled
    return {"unlabelled": images.fingerprint, "unlabelled_share": images.share} if images else {}

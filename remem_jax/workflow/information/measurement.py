"""Measures the information of teachers' features about the image, by training decoders together.

Critics are trained with them for a second, independent estimate: InfoNCE on noisy features.
"""

import functools
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from remem_jax import mesh, models, random_streams
from remem_jax.analysis import info_nce, mutual_information
from remem_jax.checks import require
from remem_jax.models import decoder
from remem_jax.records import TeacherApply
from remem_jax.storage import checkpoints, files, results
from remem_jax.train import state
from remem_jax.workflow import context, memory_plan, training
from remem_jax.workflow.information import decoders
from remem_jax.workflow.remem import finetune

PICTURES = "pictures.npz"  # In the folder of a measurement.

HeldOutBatches = Callable[[], Iterator[mutual_information.HeldOutBatch]]


def of_teachers(run: context.Run, teachers: finetune.Teachers) -> dict[str, Any]:
    """Measures all teachers of a method, the checkpoints of one fine-tuning; see `measure`."""
    jitted = with_patches(run, teachers.patches)
    steps = [record["step"] for record in teachers.records]
    return measure(
        run,
        f"information/{teachers.method}",
        lambda: [decoders.Teacher(f"step {at}", jitted, teachers.load(at)) for at in steps],
    )


def with_patches(run: context.Run, patches: TeacherApply) -> TeacherApply:
    """Jits a teacher that outputs its patch tokens."""
    return jax.jit(run.gather_params(patches), out_shardings=mesh.batch_sharding(run.mesh))


def measure(
    run: context.Run, stage: str, load: Callable[[], Sequence[decoders.Teacher]]
) -> dict[str, Any]:
    """Trains a decoder and a critic for each teacher and each of `config.information.seeds`.

    They are trained on the training images, with the augmentation of teachers and students, and
    evaluated on validation.

    Args:
        run: The run.
        stage: Name of the stage. If it is finished, its results are read from disk.
        load: Loads the teachers, which must have features of one size.

    Returns:
        The "part", the "seconds" of training, and a record for each of the "teachers": the means
        over seeds of "loss", "floor" and "excess" (see `mutual_information`); the sample
        "deviation" of the excess over seeds; the "slope" of the last evaluations; "info_nce" in
        nats with its deviation, or None; and "seeds".

    Raises:
        SettingError: If features have different sizes, or validation is smaller than a batch.
    """
    folder = run.workdir / stage
    done = results.read_for_all(folder / "result.json")
    if done is not None:
        return done
    settings, evaluations = run.config.information, decoders.milestones(run.config.information)
    _require_whole_batch(run)
    teachers, held_out = load(), _held_out(run)
    plan = memory_plan.planned(run, decoders.planned_step(run, stage, teachers))
    estimators = decoders.make(run, teachers, plan.rematerialise)

    def milestone(step: int, states: tuple[state.State, ...]) -> None:
        last = _Last(run, estimators, states) if step == settings.steps else None
        reconstructions = _evaluate(run, estimators, states, held_out(), last)
        losses = [reconstruction.loss for reconstruction in reconstructions]
        run.log.write(stage, step, {"validation_loss": losses})
        results.write_for_all(folder / f"step_{step}.json", losses)
        if last:
            _save(run, folder, reconstructions, last.bounds(), last.pictures(reconstructions))

    final_states, seconds = training.train(
        run, stage, decoders.job(run, estimators)._replace(milestone=milestone)
    )
    # The file is missing if the run was killed before it was written.
    if results.read_for_all(folder / "last.json") is None:
        milestone(settings.steps, final_states)
    curves: list[Any] = [results.read_for_all(folder / f"step_{at}.json") for at in evaluations]
    saved: Any = results.read_for_all(folder / "last.json")
    records = [
        _record(settings, list(zip(evaluations, curves, strict=True)), saved, indices)
        for indices in _by_teacher(estimators)
    ]
    result = {"part": stage, "seconds": seconds, "teachers": records}
    results.write_for_all(folder / "result.json", result)
    if mesh.is_writer():
        checkpoints.remove(folder / training.CHECKPOINTS)
    return result


def require_measurable(run: context.Run, side: int) -> None:
    """Raises unless `config.information` fits validation and a token grid of this side."""
    _require_whole_batch(run)
    decoders.require_grid(run.config.information, side)


def _require_whole_batch(run: context.Run) -> None:
    """Raises unless validation has a whole batch, because InfoNCE depends on the batch size."""
    settings, images = run.config.information, len(run.dataset.splits["validation"].rows)
    require(
        not settings.info_nce.measured or images >= settings.batch_size,
        f"config.information.batch_size must be at most {images}, the images of validation, "
        f"because InfoNCE needs whole batches; got {settings.batch_size}. Lower it, or set "
        "config.information.info_nce.measured to False.",
    )


def _held_out(run: context.Run) -> HeldOutBatches:
    """Builds the function that iterates over validation, with the evaluation transform."""
    transform = context.evaluation_transform(run.loader, run.mesh)

    def batches() -> Iterator[mutual_information.HeldOutBatch]:
        for batch in run.loader.evaluation("validation", run.config.information.batch_size):
            yield mutual_information.HeldOutBatch(transform(batch.image), batch.mask)

    return batches


@functools.cache
def _decoding(image_size: int, align_corners: bool) -> tuple[Any, Any]:
    """Returns the decoder in evaluation mode and the function of its losses, compiled once."""
    model = decoder.make(image_size=image_size, align_corners=align_corners)
    apply = models.evaluation_apply(model)
    return jax.jit(apply), jax.jit(mutual_information.make_measure(apply))


def _of_config(run: context.Run) -> tuple[Any, Any]:
    return _decoding(run.config.data.image_size, bool(run.config.information.align_corners))


def _evaluate(
    run: context.Run,
    estimators: decoders.Estimators,
    states: Sequence[state.State],
    batches: Iterator[mutual_information.HeldOutBatch],
    last: "_Last | None",
) -> list[mutual_information.Reconstruction]:
    """Evaluates each decoder on validation; `last` uses the same features."""
    _, measure = _of_config(run)
    count = estimators.decoders
    return mutual_information.evaluate(
        measure,
        estimators.features,
        estimators.teacher_indices[:count],
        [state.variables for state in states[:count]],
        batches,
        fetch=run.fetch,
        on_features=last and last.add,
    )


def _save(
    run: context.Run,
    folder: pathlib.Path,
    reconstructions: Sequence[mutual_information.Reconstruction],
    bounds: Sequence[float],
    arrays: dict[str, np.ndarray],
) -> None:
    """Writes the results of the last evaluation: numbers, maps, and some reconstructions."""
    numbers = [
        {
            "loss": reconstruction.loss,
            "floor": reconstruction.floor,
            "excess": reconstruction.excess,
            "images": len(reconstruction.image_losses),
        }
        for reconstruction in reconstructions
    ]
    if mesh.is_writer():
        with files.replacing(folder / PICTURES) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    results.write_for_all(folder / "last.json", {"decoders": numbers, "critics": bounds})


class _Last:
    """Collects the critics' bounds and the report's images during the last evaluation."""

    def __init__(
        self,
        run: context.Run,
        estimators: decoders.Estimators,
        states: Sequence[state.State],
    ) -> None:
        self._run, self._estimators, self._states = run, estimators, states
        self._estimate = jax.jit(
            info_nce.make_estimate(
                decoders.critic_inputs(run.config.information),
                key=random_streams.key(run.config.seed, "critic", "evaluation"),
            )
        )
        self._targets_of = jax.jit(mutual_information.to_unit_range)
        self._bounds: dict[int, list[float]] = {
            i: [] for i in range(estimators.decoders, len(states))
        }
        self._images: dict[str, np.ndarray] = {}

    def add(
        self, teacher: int, features: jax.Array, batch: mutual_information.HeldOutBatch
    ) -> None:
        """Adds the features of a teacher for a batch of validation."""
        targets = self._targets_of(batch.images)
        if f"reconstructions_{teacher}" not in self._images:  # The first batch.
            self._reconstruct(teacher, features, targets)
        critics = [i for i in self._bounds if self._estimators.teacher_indices[i] == teacher]
        # The bound depends on the batch size, so partial batches are skipped.
        if critics and np.asarray(self._run.fetch(batch.mask)).all():
            for i in critics:
                bound = self._estimate(self._states[i].variables, features, targets)
                self._bounds[i].append(float(bound))

    def _reconstruct(self, teacher: int, features: jax.Array, targets: jax.Array) -> None:
        apply, _ = _of_config(self._run)
        i, count = (
            self._estimators.teacher_indices.index(teacher),
            self._run.config.information.pictures,
        )
        images = jax.nn.sigmoid(apply(self._states[i].variables, features))
        self._images["images"] = np.asarray(self._run.fetch(targets))[:count]
        self._images[f"reconstructions_{teacher}"] = np.asarray(self._run.fetch(images))[:count]

    def bounds(self) -> list[float]:
        """Returns the mean bound of each critic over the full batches of validation, in nats."""
        return [statistics.fmean(values) for values in self._bounds.values()]

    def pictures(
        self, reconstructions: Sequence[mutual_information.Reconstruction]
    ) -> dict[str, np.ndarray]:
        """Returns maps and reconstructions of the first seed of each teacher, for the report."""
        # If validation is smaller than a batch, the rest of the batch is padding.
        count = len(reconstructions[0].image_losses)
        arrays = {name: images[:count] for name, images in self._images.items()}
        for number in range(len(self._estimators.features)):
            first_seed = reconstructions[self._estimators.teacher_indices.index(number)]
            arrays[f"pixel_excess_{number}"] = first_seed.pixel_excess
            arrays[f"image_losses_{number}"] = first_seed.image_losses
            arrays[f"image_floors_{number}"] = first_seed.image_floors
        return {name: values.astype(np.float32) for name, values in arrays.items()}


def _by_teacher(estimators: decoders.Estimators) -> list[tuple[list[int], list[int]]]:
    """Returns the indices of each teacher's decoders and critics, both counted from 0."""
    count, indices = estimators.decoders, list(enumerate(estimators.teacher_indices))
    return [
        (
            [i for i, index in indices[:count] if index == teacher],
            [i - count for i, index in indices[count:] if index == teacher],
        )
        for teacher in range(len(estimators.features))
    ]


def _record(
    settings: ConfigDict,
    curves: Sequence[tuple[int, Sequence[float]]],
    saved: dict[str, Any],
    indices: tuple[list[int], list[int]],
) -> dict[str, Any]:
    decoders, critics = indices
    seeds = [
        {
            "seed": seed,
            **saved["decoders"][i],
            "slope": mutual_information.plateau_slope(
                [losses[i] for _, losses in curves], _last(settings)
            ),
            "curve": [[at, losses[i]] for at, losses in curves],
        }
        for seed, i in zip(settings.seeds, decoders, strict=True)
    ]
    bounds = [saved["critics"][i] for i in critics]
    return {
        **{
            name: statistics.fmean(seed[name] for seed in seeds)
            for name in ("loss", "floor", "excess", "slope")
        },
        "deviation": _deviation([seed["excess"] for seed in seeds]),
        "images": seeds[0]["images"],
        "last": _last(settings),
        "info_nce": {
            "bound": statistics.fmean(bounds),
            "deviation": _deviation(bounds),
            "batch": settings.batch_size,
            "noise": settings.info_nce.noise,
        }
        if bounds
        else None,
        "seeds": seeds,
    }


def _last(settings: ConfigDict) -> int:
    """Returns the number of evaluations for the slope: the last half, at least two."""
    return max(2, settings.evaluations // 2)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None

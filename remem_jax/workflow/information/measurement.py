"""Measures the information that teachers' features keep of the image, by training decoders.

Critics give a second, independent estimate by InfoNCE, from noisy features.
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

Shown = Callable[[], Iterator[mutual_information.HeldOutBatch]]


def of_teachers(run: context.Run, teachers: finetune.Teachers) -> dict[str, Any]:
    """Measures all teachers of a method; see `measure`."""
    jitted = jit_with_patches(run, teachers.patches)
    steps = [record["step"] for record in teachers.records]
    return measure(
        run,
        f"information/{teachers.method}",
        lambda: [decoders.Teacher(f"step {at}", jitted, teachers.load(at)) for at in steps],
    )


def jit_with_patches(run: context.Run, patches: TeacherApply) -> TeacherApply:
    """Jits an apply function that returns patch tokens."""
    return jax.jit(run.gather_params(patches), out_shardings=mesh.batch_sharding(run.mesh))


def measure(
    run: context.Run, stage: str, load: Callable[[], Sequence[decoders.Teacher]]
) -> dict[str, Any]:
    """Trains decoders of all teachers' features, for each of `config.information.seeds`.

    They are trained on training images, with the augmentation of teachers and students, and
    evaluated on validation.

    Args:
        run: The run.
        stage: Name of the stage; if it is finished, its result is read.
        load: Loads the teachers, whose features must have the same size.

    Returns:
        The "part" (stage), the "seconds" of training, and a record for each of the "teachers":
        "loss", "floor" and "excess" of `mutual_information`, averaged over seeds; the sample
        "deviation" of the excess over seeds; the "slope" of the last evaluations; "info_nce" in
        nats with its deviation, or None; and "seeds".

    Raises:
        SettingError: If features have different sizes, or validation has less than a batch.
    """
    folder = run.workdir / stage
    done = results.read_for_all(folder / "result.json")
    if done is not None:
        return done
    settings, evaluations = run.config.information, decoders.milestones(run.config.information)
    _require_whole_batch(run)
    teachers, shown = load(), _make_shown(run)
    plan = memory_plan.planned(run, decoders.planned_step(run, stage, teachers))
    built = decoders.make(run, teachers, plan.rematerialise)

    def milestone(at: int, now: tuple[state.State, ...]) -> None:
        final = _Last(run, built, now) if at == settings.steps else None
        found = _evaluate(run, built, now, shown(), final)
        losses = [one.loss for one in found]
        run.log.write(stage, at, {"validation_loss": losses})
        results.write_for_all(folder / f"step_{at}.json", losses)
        if final:
            _keep(run, folder, found, final.bounds(), final.pictures(found))

    last, seconds = training.train(
        run, stage, decoders.job(run, built)._replace(milestone=milestone)
    )
    if results.read_for_all(folder / "last.json") is None:  # Interrupted before it was written.
        milestone(settings.steps, last)
    curves: list[Any] = [results.read_for_all(folder / f"step_{at}.json") for at in evaluations]
    kept: Any = results.read_for_all(folder / "last.json")
    found = [
        _record(settings, list(zip(evaluations, curves, strict=True)), kept, numbers)
        for numbers in _by_teacher(built)
    ]
    result = {"part": stage, "seconds": seconds, "teachers": found}
    results.write_for_all(folder / "result.json", result)
    if mesh.is_writer():
        checkpoints.remove(folder / training.CHECKPOINTS)
    return result


def require_measurable(run: context.Run, side: int) -> None:
    """Raises unless `config.information` suits validation and a teacher's grid of `side` tokens."""
    _require_whole_batch(run)
    decoders.require_grid(run.config.information, side)


def _require_whole_batch(run: context.Run) -> None:
    """Raises unless validation has a whole batch, since InfoNCE depends on the batch size."""
    settings, images = run.config.information, len(run.dataset.splits["validation"].rows)
    require(
        not settings.info_nce.measured or images >= settings.batch_size,
        f"config.information.batch_size must be at most the {images} validation images, since "
        f"InfoNCE needs whole batches; got {settings.batch_size}; or set "
        "config.information.info_nce.measured to False.",
    )


def _make_shown(run: context.Run) -> Shown:
    """Returns a function that yields the preprocessed validation images."""
    transform = context.evaluation_transform(run.loader, run.mesh)

    def shown() -> Iterator[mutual_information.HeldOutBatch]:
        for batch in run.loader.evaluation("validation", run.config.information.batch_size):
            yield mutual_information.HeldOutBatch(transform(batch.image), batch.mask)

    return shown


@functools.cache
def _decoding(image_size: int, align_corners: bool) -> tuple[Any, Any]:
    """Returns the decoder in evaluation mode and its measurement, compiled once."""
    model = decoder.make(image_size=image_size, align_corners=align_corners)
    apply = models.evaluation_apply(model)
    return jax.jit(apply), jax.jit(mutual_information.make_measure(apply))


def _of_config(run: context.Run) -> tuple[Any, Any]:
    return _decoding(run.config.data.image_size, bool(run.config.information.align_corners))


def _evaluate(
    run: context.Run,
    built: decoders.Decoders,
    now: Sequence[state.State],
    batches: Iterator[mutual_information.HeldOutBatch],
    last: "_Last | None",
) -> list[mutual_information.Reconstruction]:
    """Evaluates each decoder on validation; `last` gets the same features."""
    _, measured = _of_config(run)
    count = built.decoders
    return mutual_information.evaluate(
        measured,
        built.features,
        built.teachers[:count],
        [one.variables for one in now[:count]],
        batches,
        fetch=run.fetch,
        on_features=last and last.see,
    )


def _keep(
    run: context.Run,
    folder: pathlib.Path,
    found: Sequence[mutual_information.Reconstruction],
    bounds: Sequence[float],
    arrays: dict[str, np.ndarray],
) -> None:
    """Writes the last evaluation: numbers, maps and some reconstructions."""
    numbers = [
        {
            "loss": one.loss,
            "floor": one.floor,
            "excess": one.excess,
            "images": len(one.image_losses),
        }
        for one in found
    ]
    if mesh.is_writer():
        with files.replacing(folder / PICTURES) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    results.write_for_all(folder / "last.json", {"decoders": numbers, "critics": bounds})


class _Last:
    """Collects the critics' bounds and the report's pictures in the last evaluation."""

    def __init__(
        self, run: context.Run, built: decoders.Decoders, now: Sequence[state.State]
    ) -> None:
        self._run, self._built, self._now = run, built, now
        self._estimate = jax.jit(
            info_nce.make_estimate(
                decoders.critic_inputs(run.config.information),
                key=random_streams.key(run.config.seed, "critic", "evaluation"),
            )
        )
        self._targets_of = jax.jit(mutual_information.to_unit_range)
        self._bounds: dict[int, list[float]] = {i: [] for i in range(built.decoders, len(now))}
        self._pictures: dict[str, np.ndarray] = {}

    def see(
        self, teacher: int, features: jax.Array, shown: mutual_information.HeldOutBatch
    ) -> None:
        """Processes a teacher's features of a validation batch."""
        targets = self._targets_of(shown.images)
        if f"reconstructions_{teacher}" not in self._pictures:  # The first batch.
            self._show(teacher, features, targets)
        critics = [i for i in self._bounds if self._built.teachers[i] == teacher]
        # The bound depends on the batch size.
        if critics and np.asarray(self._run.fetch(shown.mask)).all():
            for i in critics:
                bound = self._estimate(self._now[i].variables, features, targets)
                self._bounds[i].append(float(bound))

    def _show(self, teacher: int, features: jax.Array, targets: jax.Array) -> None:
        apply, _ = _of_config(self._run)
        i, count = self._built.teachers.index(teacher), self._run.config.information.pictures
        seen = jax.nn.sigmoid(apply(self._now[i].variables, features))
        self._pictures["images"] = np.asarray(self._run.fetch(targets))[:count]
        self._pictures[f"reconstructions_{teacher}"] = np.asarray(self._run.fetch(seen))[:count]

    def bounds(self) -> list[float]:
        """Returns the mean bound of each critic over whole validation batches, in nats."""
        return [statistics.fmean(values) for values in self._bounds.values()]

    def pictures(self, found: Sequence[mutual_information.Reconstruction]) -> dict[str, np.ndarray]:
        """Returns each teacher's maps and reconstructions of the first seed, for the report."""
        # If validation has less than a batch, the rest of the batch is padding.
        arrays = {
            name: values[: len(found[0].image_losses)] for name, values in self._pictures.items()
        }
        for number in range(len(self._built.features)):
            of_first = found[self._built.teachers.index(number)]
            arrays[f"pixel_excess_{number}"] = of_first.pixel_excess
            arrays[f"image_losses_{number}"] = of_first.image_losses
            arrays[f"image_floors_{number}"] = of_first.image_floors
        return {name: values.astype(np.float32) for name, values in arrays.items()}


def _by_teacher(built: decoders.Decoders) -> list[tuple[list[int], list[int]]]:
    """Returns the indices of each teacher's decoders and critics."""
    numbered = list(enumerate(built.teachers))
    decoders, critics = numbered[: built.decoders], numbered[built.decoders :]
    return [
        (
            [i for i, teacher in decoders if teacher == number],
            [i - built.decoders for i, teacher in critics if teacher == number],
        )
        for number in range(len(built.features))
    ]


def _record(
    settings: ConfigDict,
    curves: Sequence[tuple[int, Sequence[float]]],
    kept: dict[str, Any],
    numbers: tuple[list[int], list[int]],
) -> dict[str, Any]:
    decoders, critics = numbers
    seeds = [
        {
            "seed": seed,
            **kept["decoders"][i],
            "slope": mutual_information.plateau_slope(
                [losses[i] for _, losses in curves], _last(settings)
            ),
            "curve": [[at, losses[i]] for at, losses in curves],
        }
        for seed, i in zip(settings.seeds, decoders, strict=True)
    ]
    bounds = [kept["critics"][i] for i in critics]
    return {
        **{
            name: statistics.fmean(one[name] for one in seeds)
            for name in ("loss", "floor", "excess", "slope")
        },
        "deviation": _deviation([one["excess"] for one in seeds]),
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

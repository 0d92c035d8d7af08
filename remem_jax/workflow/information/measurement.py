"""What teachers' features still say of the image, by decoders that are trained side by side.

Critics beside them estimate the same by InfoNCE, independently, through noise.
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
    """`measure` of all teachers of a method, the checkpoints of one fine-tuning."""
    jitted = seeing_patches(run, teachers.patches)
    steps = [record["step"] for record in teachers.records]
    return measure(
        run,
        f"information/{teachers.method}",
        lambda: [decoders.Teacher(f"step {at}", jitted, teachers.load(at)) for at in steps],
    )


def seeing_patches(run: context.Run, patches: TeacherApply) -> TeacherApply:
    """Teachers with their patches, jitted."""
    return jax.jit(run.gather_params(patches), out_shardings=mesh.batch_sharding(run.mesh))


def measure(
    run: context.Run, stage: str, load: Callable[[], Sequence[decoders.Teacher]]
) -> dict[str, Any]:
    """Trains readers of all teachers' features, for each of `config.information.seeds`.

    They learn from training images, cropped and mirrored as those of teachers and students, and
    are measured on those of validation.

    Args:
        run: The run.
        stage: Name of the part of the run; where it is done, what is there is read.
        load: Loads the teachers, whose features are of one size.

    Returns:
        The "part", the "seconds" of training, and a record for each of the "teachers": "loss",
        "floor" and "excess" of `mutual_information`, the means over seeds; the sample "deviation"
        of the excess over them; the "slope" of the last evaluations; "info_nce" in nats with its
        deviation, or None; and "seeds".

    Raises:
        SettingError: If features of different sizes are compared, or validation has no batch.
    """
    folder = run.workdir / stage
    done = results.read_for_all(folder / "result.json")
    if done is not None:
        return done
    settings, evaluations = run.config.information, decoders.milestones(run.config.information)
    _require_whole_batch(run)
    teachers, shown = load(), _make_shown(run)
    plan = memory_plan.planned(run, decoders.planned_step(run, stage, teachers))
    own = decoders.make(run, teachers, plan.rematerialise)

    def milestone(at: int, now: tuple[state.State, ...]) -> None:
        final = _Last(run, own, now) if at == settings.steps else None
        found = _evaluate(run, own, now, shown(), final)
        losses = [one.loss for one in found]
        run.log.write(stage, at, {"validation_loss": losses})
        results.write_for_all(folder / f"step_{at}.json", losses)
        if final:
            _keep(run, folder, found, final.bounds(), final.pictures(found))

    last, seconds = training.train(run, stage, decoders.job(run, own)._replace(milestone=milestone))
    if results.read_for_all(folder / "last.json") is None:  # Killed before it was written.
        milestone(settings.steps, last)
    curves: list[Any] = [results.read_for_all(folder / f"step_{at}.json") for at in evaluations]
    kept: Any = results.read_for_all(folder / "last.json")
    found = [
        _record(settings, list(zip(evaluations, curves, strict=True)), kept, numbers)
        for numbers in _by_teacher(own)
    ]
    result = {"part": stage, "seconds": seconds, "teachers": found}
    results.write_for_all(folder / "result.json", result)
    if mesh.is_writer():
        checkpoints.remove(folder / training.CHECKPOINTS)
    return result


def require_measurable(run: context.Run, side: int) -> None:
    """Raises unless `config.information` fits validation, and teachers of so many tokens a side."""
    _require_whole_batch(run)
    decoders.require_grid(run.config.information, side)


def _require_whole_batch(run: context.Run) -> None:
    """Raises unless validation has a whole batch: InfoNCE of a smaller one is another number."""
    settings, images = run.config.information, len(run.dataset.splits["validation"].rows)
    require(
        not settings.info_nce.measured or images >= settings.batch_size,
        f"config.information.batch_size must be at most the {images} images of validation, of "
        f"which InfoNCE takes whole batches, got {settings.batch_size}; or set "
        "config.information.info_nce.measured to False.",
    )


def _make_shown(run: context.Run) -> Shown:
    """Builds what gives the images of validation as teachers take them."""
    transform = context.evaluation_transform(run.loader, run.mesh)

    def shown() -> Iterator[mutual_information.HeldOutBatch]:
        for batch in run.loader.evaluation("validation", run.config.information.batch_size):
            yield mutual_information.HeldOutBatch(transform(batch.image), batch.mask)

    return shown


@functools.cache
def _decoding(image_size: int, align_corners: bool) -> tuple[Any, Any]:
    """The decoder in evaluation mode, and what measures it, compiled once."""
    model = decoder.make(image_size=image_size, align_corners=align_corners)
    apply = models.evaluation_apply(model)
    return jax.jit(apply), jax.jit(mutual_information.make_measure(apply))


def _of_config(run: context.Run) -> tuple[Any, Any]:
    return _decoding(run.config.data.image_size, bool(run.config.information.align_corners))


def _evaluate(
    run: context.Run,
    own: decoders.Readers,
    now: Sequence[state.State],
    batches: Iterator[mutual_information.HeldOutBatch],
    last: "_Last | None",
) -> list[mutual_information.Reconstruction]:
    """How well each of the decoders reconstructs validation; `last` sees the same features."""
    _, measured = _of_config(run)
    count = own.decoders
    return mutual_information.evaluate(
        measured,
        own.teach,
        own.reads[:count],
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
    """Writes what the last evaluation found: numbers, maps, and some images reconstructed."""
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
    """What only the last evaluation finds: the bounds of critics, and what a report shows."""

    def __init__(self, run: context.Run, own: decoders.Readers, now: Sequence[state.State]) -> None:
        self._run, self._own, self._now = run, own, now
        self._estimate = jax.jit(
            info_nce.make_estimate(
                decoders.critic_inputs(run.config.information),
                key=random_streams.key(run.config.seed, "critic", "evaluation"),
            )
        )
        self._targets_of = jax.jit(mutual_information.to_unit_range)
        self._bounds: dict[int, list[float]] = {i: [] for i in range(own.decoders, len(now))}
        self._pictures: dict[str, np.ndarray] = {}

    def see(
        self, teacher: int, features: jax.Array, shown: mutual_information.HeldOutBatch
    ) -> None:
        """Takes the features that a teacher has of a batch of validation."""
        targets = self._targets_of(shown.images)
        if f"reconstructions_{teacher}" not in self._pictures:  # The first batch.
            self._show(teacher, features, targets)
        critics = [i for i in self._bounds if self._own.reads[i] == teacher]
        # A smaller batch has another bound.
        if critics and np.asarray(self._run.fetch(shown.mask)).all():
            for i in critics:
                bound = self._estimate(self._now[i].variables, features, targets)
                self._bounds[i].append(float(bound))

    def _show(self, teacher: int, features: jax.Array, targets: jax.Array) -> None:
        apply, _ = _of_config(self._run)
        i, count = self._own.reads.index(teacher), self._run.config.information.pictures
        seen = jax.nn.sigmoid(apply(self._now[i].variables, features))
        self._pictures["images"] = np.asarray(self._run.fetch(targets))[:count]
        self._pictures[f"reconstructions_{teacher}"] = np.asarray(self._run.fetch(seen))[:count]

    def bounds(self) -> list[float]:
        """The mean bound of each critic over the whole batches of validation, in nats."""
        return [statistics.fmean(values) for values in self._bounds.values()]

    def pictures(self, found: Sequence[mutual_information.Reconstruction]) -> dict[str, np.ndarray]:
        """What a report shows: of each teacher the first seed's maps and some reconstructions."""
        # Where validation is less than a batch, the others of the batch only fill it up.
        arrays = {name: own[: len(found[0].image_losses)] for name, own in self._pictures.items()}
        for number in range(len(self._own.teach)):
            of_first = found[self._own.reads.index(number)]
            arrays[f"pixel_excess_{number}"] = of_first.pixel_excess
            arrays[f"image_losses_{number}"] = of_first.image_losses
            arrays[f"image_floors_{number}"] = of_first.image_floors
        return {name: values.astype(np.float32) for name, values in arrays.items()}


def _by_teacher(own: decoders.Readers) -> list[tuple[list[int], list[int]]]:
    """For each teacher its decoders and, counted from the first of them, its critics."""
    numbered = list(enumerate(own.reads))
    decoders, critics = numbered[: own.decoders], numbered[own.decoders :]
    return [
        (
            [i for i, read in decoders if read == number],
            [i - own.decoders for i, read in critics if read == number],
        )
        for number in range(len(own.teach))
    ]


def _record(
    settings: ConfigDict,
    curves: Sequence[tuple[int, Sequence[float]]],
    kept: dict[str, Any],
    own: tuple[list[int], list[int]],
) -> dict[str, Any]:
    decoders, critics = own
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
    """How many evaluations the slope is of: the last half, at least two."""
    return max(2, settings.evaluations // 2)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None

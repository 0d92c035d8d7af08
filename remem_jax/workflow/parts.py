"""What the parts of a run share: the data, the log, and training that goes on after a kill."""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from remem_jax import data, evaluate, mesh, platforms, random_streams, signals
from remem_jax.data import device
from remem_jax.random_streams import Stage
from remem_jax.records import Apply, Batch, Feed, Key, Metrics, Variables, View
from remem_jax.settings import counts
from remem_jax.storage import checkpoints, logs
from remem_jax.train import compiling, finite, loop, profiling
from remem_jax.train.speed import Speed
from remem_jax.workflow import advice, pretrained

S = TypeVar("S")
T = TypeVar("T")
CHECKPOINTS = "checkpoints"


class Run(NamedTuple):
    """A run in progress.

    Attributes:
        config: All settings, checked.
        workdir: Where everything is written.
        dataset: Names, metric and counts.
        feed: Its batches.
        log: Writes the metrics.
        stopping: Whether the user has asked the run to stop.
        compiled: Counts what is compiled.
        mesh: The devices, which share every batch.
        preloaded: The checkpoints, which were read before the data.
        device_bytes: Memory of a device, where the devices are not here to be asked.
    """

    config: ConfigDict
    workdir: pathlib.Path
    dataset: data.Dataset
    feed: Feed
    log: logs.RunLog
    stopping: Callable[[], bool]
    compiled: compiling.Counter
    mesh: jax.sharding.Mesh
    preloaded: pretrained.Preloaded = pretrained.Preloaded(())
    device_bytes: int = 0

    @property
    def platform(self) -> str:
        """What the devices are; see `platforms.of`."""
        return platforms.of(self.mesh.devices.flat[0])

    def memory(self) -> int:
        """Bytes of memory that a device has for the run."""
        return self.device_bytes or device.memory()

    def shardings(self, tree: Any) -> Any:
        """How arrays lie on the devices: copied to all, or divided (`config.fsdp`)."""
        return mesh.state_shardings(self.mesh, tree, fsdp=self.config.fsdp)

    def place(self, tree: T) -> T:
        """Arrays, put where `shardings` has them, as copies."""
        return mesh.place(tree, self.shardings(tree))

    def shapes(self, tree: Any) -> Any:
        """Shapes of arrays, which lie where `shardings` has them."""
        return mesh.shapes(tree, self.shardings(tree))

    def fetch(self, tree: Any) -> Any:
        """Arrays from the devices to the host, whole; all processes call it."""
        return jax.device_get(mesh.gather(tree, self.mesh))

    def spread(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """A model (in either mode) as the devices run it, whose parameters may be divided."""
        return mesh.gathered(apply, self.mesh) if self.config.fsdp else apply

    def jit_create(self, create: Callable[..., Any], *arguments: Any) -> Any:
        """A function that creates arrays, jitted: each device makes its own pieces of them.

        Args:
            create: The function, such as an initialiser of a key.
            *arguments: What it is called with, or others of the same shapes.
        """
        return jax.jit(create, out_shardings=self.shardings(jax.eval_shape(create, *arguments)))

    def jit_step(self, step: Callable[..., tuple[S, Metrics]], shapes: S) -> Any:
        """A step, jitted: it is given the state and leaves it where it was.

        Args:
            step: The step, of (state, ...).
            shapes: Of the state; see `shapes`.
        """
        return jax.jit(step, donate_argnums=0, out_shardings=self._after(shapes))

    def jit_step_with_key(self, make: Callable[..., Any], key: Key, shapes: Any) -> Any:
        """`jit_step` for a step that draws random numbers; see `random_streams.JitWithKey`.

        Args:
            make: Gives the step, called with `key=`.
            key: Of the stage.
            shapes: Of the state; see `shapes`.
        """
        outs = self._after(shapes)
        return random_streams.JitWithKey(make, key, donate_argnums=(0,), out_shardings=outs)

    def _after(self, shapes: Any) -> tuple[Any, Any]:
        """How a state and metrics lie on the devices."""
        return jax.tree.map(lambda leaf: leaf.sharding, shapes), mesh.replicated(self.mesh)


class Measure(NamedTuple):
    """Measures a model, with any variables, on a split.

    Attributes:
        apply: The compiled model in evaluation mode.
        view: What models see of the images; see `evaluation_view`.
        add: The compiled `evaluate.count`; all models of a run share the work of compiling it.
        batches: Of "train", "validation" or "test".
        classes: Number of classes.
    """

    apply: Apply
    view: evaluate.EvaluationView
    add: evaluate.Count
    batches: Callable[[str], Iterator[Batch]]
    classes: int

    def model(self, variables: Variables) -> evaluate.Model:
        """The model with these variables, as the `teacher` of students."""
        return evaluate.Model(self.apply, variables)

    def __call__(
        self, variables: Variables, split: str, *, predictions: bool = False
    ) -> dict[str, Any]:
        """Metrics of the model; see `evaluate.evaluate`."""
        return self.all([variables], split, predictions=predictions).models[0]

    def all(
        self,
        variables: Sequence[Variables],
        split: str,
        *,
        teacher: evaluate.Model | None = None,
        confusion: bool = False,
        predictions: bool = False,
    ) -> evaluate.Evaluated:
        """The same with each of several variables, in one pass over the split."""
        return evaluate.evaluate(
            self.add,
            self.view,
            [self.model(one) for one in variables],
            self.batches(split),
            classes=self.classes,
            teacher=teacher,
            confusion=confusion,
            predictions=predictions,
        )


def load_data(
    config: ConfigDict, settings: ConfigDict, on: jax.sharding.Mesh
) -> tuple[data.Dataset, Feed]:
    """The data set that `settings` (such as `config.data`) name, and its batches on the devices."""
    dataset = load_dataset(config, settings)
    feed = data.make_feed(
        dataset,
        image_size=settings.image_size,
        crop_area=tuple(settings.crop_area),
        seed=config.seed,
        threads=settings.threads,
        workers=settings.workers,
        sharding=mesh.batch_sharding(on),
    )
    return dataset._replace(pixels=None), feed  # The feed has them.


def load_dataset(config: ConfigDict, settings: ConfigDict) -> data.Dataset:
    """The data set that `settings` (such as `config.data`) name."""
    source = data.open_source(settings.name, path=settings.path, data_dir=settings.dir)
    if settings is config.data:
        counts.check(config, source)
    names = ("input", "stored_size", "resident_gib", "cache", "threads")
    return data.load(
        source,
        data.Storage(**{name: settings[name] for name in names}),
        validation=settings.validation,
        seed=config.seed,
        corrupt_limit=settings.corrupt_limit,
    )


class Job(NamedTuple):
    """What `train` does.

    Attributes:
        shapes: Of the state, as it lies on the devices; its structure is that of the checkpoints.
        first: Makes the state at step 0; not called where a checkpoint is there.
        make_step: Makes the (jitted) step, given the number of steps that were done before.
        operations: Counts the floating-point operations of a step.
        batch_size: Examples in a batch.
        steps: Steps in all.
        milestones: After which steps `milestone` is called.
        milestone: Looks at the state; may be called again for a step after a kill.
        stage: Whose batches it takes.
        lost: Numbers of the models, where several are trained at once, whose state is not finite
            any more, which no step mends. `train` adds them when it sees them, before `milestone`
            is called.
    """

    shapes: Any
    first: Callable[[], Any]
    make_step: Callable[[int], Callable[[Any, Batch], tuple[Any, Metrics]]]
    operations: Callable[[Any, Batch], float]
    batch_size: int
    steps: int
    milestones: tuple[int, ...]
    milestone: Callable[[int, Any], None]
    stage: Stage
    lost: set[int]


def train(run: Run, part: str, job: Job) -> tuple[Any, float]:
    """Trains one part of a run to its end, from its newest checkpoint if there is one.

    Args:
        run: The run.
        part: Name of the part: its folder below the run's, and its name in the log.
        job: What is trained, and how.

    Returns:
        The last state, and the seconds that training took, over all interruptions.

    Raises:
        NonFiniteLossError: If no model is finite any more; it has the seconds too.
    """
    config = run.config
    folder = run.workdir / part / CHECKPOINTS
    with checkpoints.Checkpoints(folder, keep=config.keep_checkpoints) as saved:
        first, done, seconds = _begun(saved, job)
        started = time.monotonic() - seconds
        progress = logs.Progress(part, first_step=done, steps=job.steps)
        trace = profiling.Trace(run.workdir / "profile" / part, first_step=done)

        def after(at: int) -> None:
            ended()
            progress(at)
            if config.profile and mesh.is_writer():
                trace(at)

        def stopping(at: int) -> bool:
            # Several processes have to agree, which is not for every step.
            if jax.process_count() > 1 and at % config.log_every:
                return False
            return mesh.any_process(run.stopping())

        speed = Speed(job.operations, run.mesh, config.compute_dtype)

        def faulty(numbers: Sequence[int], states: Any) -> None:
            known = len(job.lost)
            job.lost.update(i for i in numbers if i not in job.lost and not _is_finite(states[i]))
            if len(job.lost) > known:
                logging.warning("%s: models %s are not finite any more.", part, sorted(job.lost))
                speed.count_again()

        effects = loop.Effects(
            log=lambda at, metrics: run.log.write(part, at, {**metrics, **speed.of(metrics)}),
            save=lambda at, state: saved.save(
                at, state, note={"seconds": time.monotonic() - started, "lost": sorted(job.lost)}
            ),
            faulty=faulty,
            milestone=job.milestone,
            progress=after,
            stopping=stopping,
        )
        with (
            contextlib.closing(run.feed.train(job.batch_size, done, stage=job.stage)) as batches,
            advice.given(part),
            advice.of_memory(part),
            _timed(started),
            signals.steps() as ended,
        ):
            last = loop.fit(
                first,
                speed.counting(job.make_step(done)),
                batches,
                first_step=done,
                schedule=loop.Schedule(
                    job.steps, job.milestones, config.log_every, config.save_every
                ),
                effects=effects,
            )
        trace.close()
        progress.close()
        if mesh.any_process(signals.asked()):
            raise loop.StoppedError(
                f"stopped after step {job.steps} of {job.steps}, which is saved"
            )
        logging.info("%s: %s", part, _compiled(run.compiled.read()))
        return last, time.monotonic() - started


def _begun(saved: checkpoints.Checkpoints, job: Job) -> tuple[Any, int, float]:
    """The state that training begins with, its step, and the seconds that went into it.

    Where there is a checkpoint, the state at step 0 is never made: the devices hold one state.
    """
    done = saved.newest() or 0
    if not done:
        return job.first(), 0, 0.0
    state, note = saved.restore(done, job.shapes)
    job.lost.update(note.get("lost", ()))  # Earlier versions have stepped them on.
    return state, done, note["seconds"]


@contextlib.contextmanager
def _timed(started: float) -> Iterator[None]:
    """Adds the seconds since `started` to an error of a loss that is not finite."""
    try:
        yield
    except loop.NonFiniteLossError as error:
        error.seconds = time.monotonic() - started
        raise


@jax.jit
def _finite(state: Any) -> jax.Array:
    return finite.is_finite(state)


def _is_finite(state: Any) -> bool:
    return bool(jax.device_get(_finite(state)))


def _compiled(found: compiling.Compiled) -> str:
    return (
        f"compiled {found.made} functions and found {found.found} compiled before, in "
        f"{found.seconds:.1f} s"
    )


def log_validation(run: Run, part: str, at: int, value: float | list[float]) -> None:
    """Writes how a model, or every student, does on validation, and tells the user."""
    run.log.write(part, at, {"validation": value})
    shown = ", ".join(f"{100 * one:.2f}" for one in np.atleast_1d(value))
    logging.info("%s: step %d, %s %% on validation", part, at, shown)


def make_measure(run: Run, apply: Apply, batch_size: int) -> Measure:
    """Builds what measures a model on a split of the run; compiled once."""
    return Measure(
        jax.jit(run.spread(apply)),
        evaluation_view(run.feed, run.mesh),
        jax.jit(evaluate.count, donate_argnums=0),
        lambda split: run.feed.evaluation(split, batch_size),
        len(run.dataset.classes),
    )


def evaluation_view(feed: Feed, on: jax.sharding.Mesh) -> evaluate.EvaluationView:
    """What models see of the images of evaluation; compiled once for all models of a feed."""
    return _jitted_view(feed.evaluation_view, mesh.batch_sharding(on))


@functools.lru_cache(maxsize=8)
def _jitted_view(view: View, sharding: jax.sharding.NamedSharding) -> evaluate.EvaluationView:
    return jax.jit(lambda images: view(jax.random.key(0), images), out_shardings=sharding)

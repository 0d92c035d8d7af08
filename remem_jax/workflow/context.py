"""What every stage of a run is given: its settings, data, devices and log."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from ml_collections import ConfigDict

from remem_jax import data, evaluate, mesh, platforms, random_streams
from remem_jax.data.loaders import resident
from remem_jax.records import Apply, Batch, DataLoader, Key, Metrics, Transform, Variables
from remem_jax.settings import counts
from remem_jax.storage import logs
from remem_jax.train import compiling
from remem_jax.workflow import initial_checkpoints

S = TypeVar("S")
T = TypeVar("T")


class Run(NamedTuple):
    """A run in progress.

    Attributes:
        config: All settings, checked.
        workdir: Where everything is written.
        dataset: Names, metric and counts.
        loader: Its batches.
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
    loader: DataLoader
    log: logs.RunLog
    stopping: Callable[[], bool]
    compiled: compiling.Counter
    mesh: jax.sharding.Mesh
    preloaded: initial_checkpoints.Preloaded = initial_checkpoints.Preloaded(())
    device_bytes: int = 0

    @property
    def platform(self) -> str:
        """What the devices are; see `platforms.of`."""
        return platforms.of(self.mesh.devices.flat[0])

    def memory(self) -> int:
        """Bytes of memory that a device has for the run."""
        return self.device_bytes or resident.memory()

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

    def gather_params(self, apply: Callable[..., Any]) -> Callable[..., Any]:
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
        transform: What models see of the images; see `evaluation_transform`.
        add: The compiled `evaluate.count`; all models of a run share the work of compiling it.
        batches: Of "train", "validation" or "test".
        classes: Number of classes.
    """

    apply: Apply
    transform: evaluate.EvaluationTransform
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
            self.transform,
            [self.model(one) for one in variables],
            self.batches(split),
            classes=self.classes,
            teacher=teacher,
            confusion=confusion,
            predictions=predictions,
        )


def load_data(
    config: ConfigDict, settings: ConfigDict, on: jax.sharding.Mesh
) -> tuple[data.Dataset, DataLoader]:
    """The data set that `settings` (such as `config.data`) name, and its batches on the devices."""
    dataset = load_dataset(config, settings)
    loader = data.make_loader(
        dataset,
        image_size=settings.image_size,
        crop_area=tuple(settings.crop_area),
        seed=config.seed,
        threads=settings.threads,
        workers=settings.workers,
        sharding=mesh.batch_sharding(on),
    )
    return dataset._replace(pixels=None), loader  # The loader has them.


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


def make_measure(run: Run, apply: Apply, batch_size: int) -> Measure:
    """Builds what measures a model on a split of the run; compiled once."""
    return Measure(
        jax.jit(run.gather_params(apply)),
        evaluation_transform(run.loader, run.mesh),
        jax.jit(evaluate.count, donate_argnums=0),
        lambda split: run.loader.evaluation(split, batch_size),
        len(run.dataset.classes),
    )


def evaluation_transform(loader: DataLoader, on: jax.sharding.Mesh) -> evaluate.EvaluationTransform:
    """What models see of the images of evaluation; compiled once for all models of a loader."""
    return _jitted_transform(loader.evaluation_transform, mesh.batch_sharding(on))


@functools.lru_cache(maxsize=8)
def _jitted_transform(
    transform: Transform, sharding: jax.sharding.NamedSharding
) -> evaluate.EvaluationTransform:
    return jax.jit(lambda images: transform(jax.random.key(0), images), out_shardings=sharding)

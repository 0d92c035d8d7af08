"""The context of a run, which all stages share: settings, data, devices and log."""

import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from remem_jax import data, evaluate, losses, mesh, platforms, random_streams, tallies
from remem_jax.data.images import policies, preprocessing
from remem_jax.data.loaders import resident
from remem_jax.data.tfds import named
from remem_jax.methods import METHODS
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
        config: All settings, already checked.
        workdir: Folder of the run.
        dataset: Class names, metric and examples of the data set.
        loader: Data loader.
        log: Writer of metrics.
        stopping: Returns whether the user has asked the run to stop.
        compiled: Counter of compilations.
        mesh: Mesh of devices, which share every batch.
        preloaded: Pretrained checkpoints, which are read before the data.
        device_bytes: Memory of a device in bytes, if it cannot be queried because the devices are
            not attached; else 0.
        deadline: Value of `time.monotonic` by which the training of a stage should end: its steps
            then take their learning rates from a `pace.Pace`. None: they have a schedule over a
            fixed number of steps.
        most_steps: Number of steps that a stage with a deadline may have if they are faster than
            planned; 0 for the planned number.
        shared: Folder of the teachers that the run shares with other trials of a study; None if it
            has its own.
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
    deadline: float | None = None
    most_steps: int = 0
    shared: pathlib.Path | None = None

    @property
    def platform(self) -> str:
        """Platform of the devices; see `platforms.of`."""
        return platforms.of(self.mesh.devices.flat[0])

    @property
    def train_transform(self) -> Transform:
        """Transform of training images of teachers and students, with all augmentations.

        Decoders of `config.information` use that of the loader: crops and flips alone.
        """
        settings = self.config.data
        changes = policies.Changes(
            settings.augment,
            settings.augment_operations,
            settings.augment_magnitude,
            settings.color_jitter,
            settings.random_erasing,
        )
        return policies.extended(self.loader.train_transform, changes)

    def for_distillation(self) -> "Run":
        """Returns the run with the batches of students that have a teacher.

        They have unlabelled images, if there are any; see `DataLoader.distillation`.
        """
        return self._replace(loader=self.loader._replace(train=self.loader.distillation))

    def for_refit(self) -> "Run":
        """Returns the run with train and validation together as its training images."""
        if self.loader.refit is None:
            raise ValueError("The loader was built without a refit.")
        return self._replace(loader=self.loader.refit, dataset=self.dataset.for_refit())

    def memory(self) -> int:
        """Returns the memory of a device, in bytes."""
        return self.device_bytes or resident.memory()

    def class_weights(self, beta: float) -> jax.Array | None:
        """Returns the weights of the class-balanced loss; None if `beta` is 0.

        Args:
            beta: See `losses.effective_number_weights`.
        """
        if not beta:
            return None
        labels, classes = self.dataset.splits["train"].labels, len(self.dataset.classes)
        return jnp.asarray(losses.effective_number_weights(labels, classes, beta))

    def shardings(self, tree: Any) -> Any:
        """Returns the shardings of arrays: replicated, or sharded if `config.fsdp` is set."""
        return mesh.state_shardings(self.mesh, tree, fsdp=self.config.fsdp)

    def place(self, tree: T) -> T:
        """Copies arrays to the devices, with the shardings of `shardings`."""
        return mesh.place(tree, self.shardings(tree))

    def shapes(self, tree: Any) -> Any:
        """Returns the shapes of arrays, with the shardings of `shardings`."""
        return mesh.shapes(tree, self.shardings(tree))

    def batch_shapes(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Returns the shapes of a function's outputs for a batch, with their shardings.

        `jax.eval_shape` omits the shardings, and a jitted function is traced again if it is then
        called with arrays that have one.
        """
        outputs = jax.eval_shape(function, *arguments)
        return mesh.shapes(outputs, mesh.batch_sharding(self.mesh))

    def fetch(self, tree: Any) -> Any:
        """Fetches whole arrays from the devices to the host; all processes must call it."""
        return jax.device_get(mesh.gather(tree, self.mesh))

    def gather_params(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps an apply function (in either mode) to gather sharded parameters (`config.fsdp`)."""
        return mesh.gathered(apply, self.mesh) if self.config.fsdp else apply

    def jit_create(self, create: Callable[..., Any], *arguments: Any) -> Any:
        """Jits a function that creates arrays, so that each device creates only its own shards.

        Args:
            create: The function, such as an initialiser that takes a key.
            *arguments: Its arguments, or others of the same shapes.
        """
        return jax.jit(create, out_shardings=self.shardings(jax.eval_shape(create, *arguments)))

    def jit_step(self, step: Callable[..., tuple[S, Metrics]], shapes: S) -> Any:
        """Jits a step; the state is donated and keeps its sharding.

        Args:
            step: Function of (state, ...) that returns the new state and metrics.
            shapes: Shapes of the state; see `shapes`.
        """
        return jax.jit(step, donate_argnums=0, out_shardings=self._step_shardings(shapes))

    def jit_step_with_key(self, make: Callable[..., Any], key: Key, shapes: Any) -> Any:
        """Jits a step that draws random numbers; see `jit_step` and `random_streams.JitWithKey`.

        Args:
            make: Function that returns the step, given `key=`.
            key: Random key of the stage.
            shapes: Shapes of the state; see `shapes`.
        """
        out_shardings = self._step_shardings(shapes)
        return random_streams.JitWithKey(
            make, key, donate_argnums=(0,), out_shardings=out_shardings
        )

    def _step_shardings(self, shapes: Any) -> tuple[Any, Any]:
        """Returns the shardings of the state and metrics that a step returns."""
        return jax.tree.map(lambda leaf: leaf.sharding, shapes), mesh.replicated(self.mesh)


class Measure(NamedTuple):
    """Evaluates a model, with any variables, on a split.

    Attributes:
        apply: The compiled model in evaluation mode.
        transform: Preprocessing of images; see `evaluation_transform`.
        add: The compiled `tallies.count`, which all models of a run share.
        batches: Returns the batches of "train", "validation" or "test".
        classes: Number of classes.
    """

    apply: Apply
    transform: evaluate.EvaluationTransform
    add: tallies.Count
    batches: Callable[[str], Iterator[Batch]]
    classes: int

    def model(self, variables: Variables) -> evaluate.Model:
        """Returns the model with these variables, to be passed as the `teacher` of students."""
        return evaluate.Model(self.apply, variables)

    def __call__(
        self,
        variables: Variables,
        split: str,
        *,
        predictions: bool = False,
        logits: bool = False,
    ) -> dict[str, Any]:
        """Returns the metrics of the model; see `all`."""
        return self.all([variables], split, predictions=predictions, logits=logits).models[0]

    def all(
        self,
        variables: Sequence[Variables],
        split: str,
        *,
        teacher: evaluate.Model | None = None,
        **wanted: bool,
    ) -> evaluate.Evaluated:
        """Evaluates several sets of variables in one pass over the split.

        Args:
            variables: Variables of each model.
            split: "train", "validation" or "test".
            teacher: See `evaluate.evaluate`.
            **wanted: Fields of `evaluate.Wanted`.
        """
        return evaluate.evaluate(
            self.add,
            self.transform,
            [self.model(each) for each in variables],
            self.batches(split),
            classes=self.classes,
            teacher=teacher,
            wanted=evaluate.Wanted(**wanted),
        )


def load_data(
    config: ConfigDict, settings: ConfigDict, device_mesh: jax.sharding.Mesh
) -> tuple[data.Dataset, DataLoader]:
    """Loads the data set that `settings` (such as `config.data`) names, and makes its loader."""
    dataset = load_dataset(config, settings)
    loader = data.make_loader(
        dataset,
        preprocessing_of(dataset, settings),
        crop_area=tuple(settings.crop_area),
        balance=settings.balanced_sampling,
        seed=config.seed,
        threads=settings.threads,
        workers=settings.workers,
        sharding=mesh.batch_sharding(device_mesh),
    )
    unlabelled = dataset.unlabelled and dataset.unlabelled._replace(pixels=None)
    # The loader holds the pixels.
    return dataset._replace(pixels=None, unlabelled=unlabelled), loader


def preprocessing_of(dataset: data.Dataset, settings: ConfigDict) -> preprocessing.Preprocessing:
    """Returns the preprocessing of a data set's images for evaluation.

    Args:
        dataset: The data set.
        settings: The settings that name it, such as `config.data`.
    """
    return preprocessing.of_data(
        settings.image_size,
        resized=dataset.resized,
        source_size=dataset.source_size,
        crop=settings.evaluation_crop,
    )


def load_dataset(config: ConfigDict, settings: ConfigDict) -> data.Dataset:
    """Loads the data set that `settings` (such as `config.data`) names."""
    source = open_source(settings)
    if settings is config.data:
        if _distils(config):
            source = with_unlabelled(source, settings)
        counts.check(config, source, splitting_rules(config, settings))
    names = ("input", "stored_size", "resident_gib", "cache", "threads")
    return data.load(
        source,
        data.Storage(**{name: settings[name] for name in names}),
        splitting_rules(config, settings),
        corrupt_limit=settings.corrupt_limit,
        refit=bool(settings.refit),
    )


def splitting_rules(config: ConfigDict, settings: ConfigDict) -> data.Rules:
    """Returns how images of the data set that `settings` names are held out of train."""
    return data.Rules(settings.validation, config.seed, bool(settings.group_duplicates))


def open_source(settings: ConfigDict) -> data.Source:
    """Opens the data set that `settings` names, without decoding images."""
    source = data.open_source(
        settings.name,
        path=settings.path,
        data_dir=settings.dir,
        choices=named.Choices(*(settings[name] for name in named.Choices._fields)),
        root=settings.root,
        group_pattern=settings.group_pattern,
    )
    return data.with_rules(
        source,
        flip=settings.flip,
        metric=settings.metric,
        validation=bool(settings.official_validation) and settings.validation > 0,
    )


def with_unlabelled(source: data.Source, settings: ConfigDict) -> data.Source:
    """Adds the unlabelled images that `settings` (`config.data`) names, if any."""
    if not settings.unlabelled:
        return source
    share = settings.unlabelled_share
    return data.with_unlabelled(source, settings.unlabelled, largest_share=share)


def _distils(config: ConfigDict) -> bool:
    """Returns whether a workflow has students with a teacher."""
    return any(METHODS[method].has_teacher for method in config.get("methods", ()))


def make_measure(run: Run, apply: Apply, batch_size: int) -> Measure:
    """Builds the evaluation of a model on the splits of a run; compiled once."""
    return Measure(
        jax.jit(run.gather_params(apply)),
        evaluation_transform(run.loader, run.mesh),
        jax.jit(tallies.count, donate_argnums=0),
        lambda split: run.loader.evaluation(split, batch_size),
        len(run.dataset.classes),
    )


def evaluation_transform(
    loader: DataLoader, device_mesh: jax.sharding.Mesh
) -> evaluate.EvaluationTransform:
    """Returns the preprocessing for evaluation; compiled once for all models of a loader."""
    return _jitted_transform(loader.evaluation_transform, mesh.batch_sharding(device_mesh))


@functools.lru_cache(maxsize=8)
def _jitted_transform(
    transform: Transform, sharding: jax.sharding.NamedSharding
) -> evaluate.EvaluationTransform:
    return jax.jit(lambda images: transform(jax.random.key(0), images), out_shardings=sharding)

"""The real steps of a run, on devices that this machine does not have.

The data set and the checkpoint have shapes but no content, because steps are traced and compiled
but never run. Only this module of the tool depends on the project's workflows.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from remem_jax import data, mesh, models, tallies
from remem_jax.data.images import augment
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.records import Batch, DataLoader, Variables
from remem_jax.train import compiling
from remem_jax.weights import augreg
from remem_jax.weights.facts import UNKNOWN
from remem_jax.weights.teacher_sources import TeacherSource
from remem_jax.workflow import context, initial_checkpoints, memory_plan, precision, step_memory
from remem_jax.workflow.information import decoders
from remem_jax.workflow.remem import student_grid, student_setup, teacher_training
from tools.aot import teachers

CLASSES, IMAGES, SIDE = 102, 8189, 256  # Flowers-102 at the stored_size of configs/remem.py.
RESIDENT_BYTES = IMAGES * SIDE * SIDE * 3


class Function(NamedTuple):
    """A compiled function of a step.

    Attributes:
        name: Its name in messages.
        jitted: The jitted function of a run.
        arguments: Shapes and shardings of its arguments.
        state: The `State` that it trains, as shapes; None if it trains nothing.
        read: Shapes of other parameters that it reads.
    """

    name: str
    jitted: Any
    arguments: tuple[Any, ...]
    state: Any = None
    read: Any = None

    @property
    def arrays(self) -> list[jax.ShapeDtypeStruct]:
        """Arguments that are arrays on the devices."""
        leaves = jax.tree.leaves(self.arguments)
        return [leaf for leaf in leaves if getattr(leaf, "sharding", None) is not None]


class Step(NamedTuple):
    """A step that a run repeats, with the arrays that it needs.

    Attributes:
        functions: The functions that it calls, in order.
        held: Shapes of all arrays that exist while it runs, each once.
        passes: Number of gradients for each batch.
        plan: Description of the memory plan that was chosen.
    """

    functions: tuple[Function, ...]
    held: Any
    passes: int = 1
    plan: str = ""


def open_run(config: ConfigDict, on: jax.sharding.Mesh, device_bytes: int) -> context.Run:
    """Returns a run whose images are resident on the devices, but have no content.

    Args:
        config: All settings.
        on: The devices.
        device_bytes: Memory of each device that programs may use.
    """
    config = precision.resolved(config, on)
    settings = config.data
    dataset = data.Dataset(
        title="described",
        splits={},
        pixels=None,
        source_size=(SIDE, SIDE),
        resident_bytes=RESIDENT_BYTES,
        resized=True,
        classes=tuple(f"class {i}" for i in range(CLASSES)),
        metric="mean_per_class",
        flip=True,
        official=None,
        corrupt_images=(),
        fingerprint="",
        skipped_files={},
        empty_classes=(),
        warnings=(),
        shapes=None,
    )

    def batches(batch_size: int) -> Iterator[Any]:
        while True:
            yield Batch(
                jax.ShapeDtypeStruct((batch_size, SIDE, SIDE, 3), np.uint8),  # pyright: ignore
                jax.ShapeDtypeStruct((batch_size,), np.int32),  # pyright: ignore
                jax.ShapeDtypeStruct((batch_size,), np.bool_),  # pyright: ignore
            )

    loader = DataLoader(
        "resident",
        lambda batch_size, first_step, *, stage: batches(batch_size),  # pyright: ignore
        lambda batch_size, first_step, *, stage: batches(batch_size),  # pyright: ignore
        lambda split, batch_size: batches(batch_size),  # pyright: ignore
        augment.make_train_transform(
            size=settings.image_size, crop_area=tuple(settings.crop_area), flip=dataset.flip
        ),
        augment.make_evaluation_transform(Preprocessing(settings.image_size)),
    )
    log: Any = None  # Nothing runs, so nothing is logged.
    return context.Run(
        config,
        pathlib.Path(),
        dataset,
        loader,
        log,
        lambda: False,
        compiling.Counter(),
        on,
        device_bytes=device_bytes,
    )


def checkpoint(config: ConfigDict) -> initial_checkpoints.Pretrained:
    """Returns a checkpoint with zeros that take no memory.

    Args:
        config: All settings. `config.teacher.init` names one of `teachers.NETWORKS`; for another
            value, the network is an AugReg ViT of `config.teacher.variant`.
    """
    network = teachers.NETWORKS.get(config.teacher.init)
    if network:
        model, form, facts = network.make(CLASSES), "timm", network.facts()
    else:
        model = models.make("vit", variant=config.teacher.variant, classes=CLASSES)
        form, facts = "vit_jax", UNKNOWN
    shapes = augreg.names_and_shapes(model, config.data.image_size)
    zero = np.zeros((), np.float32)
    arrays = {name: np.broadcast_to(zero, shape) for name, shape in shapes.items()}
    described = augreg.describe(arrays, form=form, source="described", facts=facts)
    source = TeacherSource(pathlib.Path(described.source))
    return initial_checkpoints.Pretrained(described, "", source)


def teacher(run: context.Run) -> Step:
    """Returns the step that fine-tunes the teacher of a run with one method."""
    (method,) = run.config.methods
    settings = teacher_training.settings_of(run.config, method)
    first = teacher_training.start(run, checkpoint(run.config), method)
    planned = teacher_training.planned_step(run, method, first)
    option = memory_plan.choose(run, planned)
    # If no plan fits, the table shows the memory of the last one.
    plan = option.plan if option else planned.plans[-1]
    training = teacher_training.make_training(run, settings, first._replace(plan=plan))
    batch = step_memory.batch(run, settings.batch_size)
    arguments = (training.shapes, batch, first.frozen)
    step = Function("step", training.step, arguments, state=training.shapes, read=first.frozen)
    return Step((step,), arguments, 2 if settings.rho > 0 else 1, str(plan))


def distillation(run: context.Run) -> Step:
    """Returns the step of one student: augmentation, the teacher's pass, the student's step."""
    start = checkpoint(run.config)
    setup = student_setup.make(run, start)
    (point, *_) = student_grid.grid_points(run.config.student)
    variables, first = _teacher(run, start)
    compute_targets = student_setup.make_targets(run, teacher_training.teacher_apply(run, first))

    batch = step_memory.batch(run, run.config.student.batch_size)
    number, by_batch = jax.ShapeDtypeStruct((), np.int32), mesh.batch_sharding(run.mesh)
    augmented = mesh.shapes(jax.eval_shape(setup.augment, number, batch), by_batch)
    targets = mesh.shapes(jax.eval_shape(compute_targets, variables, augmented.images), by_batch)
    state = setup.shapes[point.loss]
    arguments = (state, *augmented, targets, point.hyperparameters)
    functions = (
        Function("augment", setup.augment, (number, batch)),
        Function("teacher", compute_targets, (variables, augmented.images), read=variables),
        Function("student", setup.step(point), arguments, state=state),
    )
    return Step(functions, (variables, batch, augmented, targets, state))


def information(run: context.Run) -> Step:
    """Returns a step of a decoder and a critic, which read the features of a teacher."""
    start = checkpoint(run.config)
    variables, first = _teacher(run, start)
    patches = first.tuned.wrap(models.teacher_apply(first.model, ("patches",)))
    by_batch = mesh.batch_sharding(run.mesh)
    jitted = jax.jit(run.gather_params(patches), out_shardings=by_batch)
    zeros = jax.tree.map(
        lambda leaf: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape), variables
    )
    described = [decoders.Teacher("teacher", jitted, variables)]
    planned = decoders.planned_step(run, "information/remem", described)
    option = memory_plan.choose(run, planned)
    plan = option.plan if option else planned.plans[-1]
    setup = decoders.make(run, [decoders.Teacher("teacher", jitted, zeros)], plan.rematerialise)
    states = setup.shapes

    batch = step_memory.batch(run, run.config.information.batch_size)
    number = jax.ShapeDtypeStruct((), np.int32)
    transform = decoders.make_train_transform(run)
    images = mesh.shapes(jax.eval_shape(transform, number, batch), by_batch)
    features = mesh.shapes(jax.eval_shape(lambda x: setup.features[0](x), images), by_batch)
    outputs = mesh.shapes(jax.eval_shape(jitted, variables, images), by_batch)
    names = ("decoder",) * setup.decoders + ("critic",) * (len(states) - setup.decoders)
    functions = (
        Function("augment", transform, (number, batch)),
        Function("teacher", jitted, (variables, images), read=variables),
        *(
            Function(name, step, (state, features, images), state=state)
            for name, step, state in zip(names, setup.steps, states, strict=True)
        ),
    )
    return Step(functions, (variables, batch, images, outputs, features, states))


def evaluation(run: context.Run) -> Step:
    """Returns the evaluation of a teacher on a batch: its logits, and counting correct ones."""
    variables, first = _teacher(run, checkpoint(run.config))
    batch_size = run.config.teacher.batch_size
    measure = context.make_measure(run, teacher_training.evaluation_apply(first), batch_size)
    by_batch = mesh.batch_sharding(run.mesh)
    batch = mesh.shapes(next(measure.batches("validation")), by_batch)
    images = mesh.shapes(jax.eval_shape(measure.transform, batch.image), by_batch)
    logits = mesh.shapes(jax.eval_shape(measure.apply, variables, images), by_batch)
    empty = jax.eval_shape(
        lambda: tallies.init_tally(measure.classes, agreement=False, confusion=False)
    )
    tally = mesh.shapes(empty, mesh.replicated(run.mesh))
    functions = (
        Function("transform", measure.transform, (batch.image,)),
        Function("model", measure.apply, (variables, images), read=variables),
        Function("count", measure.add, (tally, logits, batch)),
    )
    return Step(functions, (variables, batch, images, logits, tally))


def _teacher(
    run: context.Run, start: initial_checkpoints.Pretrained
) -> tuple[Variables, teacher_training.Start]:
    """Returns the shapes of a teacher's variables, and the start of its fine-tuning."""
    (method,) = run.config.methods
    first = teacher_training.start(run, start, method)
    return run.shapes(jax.eval_shape(first.teacher, first.trainable)), first

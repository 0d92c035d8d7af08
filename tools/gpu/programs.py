"""The programs that run on GPU and CPU, with a real ViT and one batch of images."""

import contextlib
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from remem_jax import losses, models, optim, platforms, sam
from remem_jax.data.images.augment import Mixing
from remem_jax.models import encoder
from remem_jax.records import Batch, Hyperparameters
from remem_jax.train import state, steps, student_losses
from remem_jax.train.division import Division
from remem_jax.weights import augreg
from tools.gpu import sketch

RHO, MLP_WEIGHT, STUDENT = 0.05, 0.8, "resnet18"


class Values(NamedTuple):
    """The results of a program.

    Attributes:
        exact: Name -> values that are stored exactly: logits, losses.
        sketched: Sketches of gradients, by the names of parameters.
        held_bytes: Memory of arguments, results and temporary arrays, as the compiler planned it.
            None if the compiler does not report it.
    """

    exact: Mapping[str, np.ndarray]
    sketched: sketch.Sketches
    held_bytes: int | None


class Inputs(NamedTuple):
    """A checkpoint and a batch.

    Attributes:
        weights: File of the ViT, with its head.
        images: uint8 images at the size of the ViT's input.
        labels: A class of the ViT for each image.
        student: Name of the student.
    """

    weights: pathlib.Path
    images: np.ndarray
    labels: np.ndarray
    student: str = STUDENT


Program = Callable[[], Values]


def make(inputs: Inputs, dtype: str) -> dict[str, Program]:
    """Returns the programs by name; in float32 they use the device's highest precision."""
    programs = {"gradient": _gradient, "sam_step": _sam_step, "kd_step": _kd_step}
    return {
        name: functools.partial(_run, program, inputs, dtype) for name, program in programs.items()
    }


def _run(program: Callable[[Inputs, str], Values], inputs: Inputs, dtype: str) -> Values:
    with precisely(dtype):
        return program(inputs, dtype)


@contextlib.contextmanager
def precisely(dtype: str) -> Iterator[None]:
    """Computes float32 matrix products in float32, which GPUs and TPUs round by default."""
    if dtype == "float32":
        with jax.default_matmul_precision("highest"):
            yield
    else:
        yield


def _gradient(inputs: Inputs, dtype: str) -> Values:
    """Computes logits, loss and gradient of the ViT without re-weighting."""
    model, params = _vit(inputs, dtype)
    apply = models.train_apply(model)
    batch = _batch(inputs)

    def loss_of(params: Any, batch: Batch) -> tuple[Any, Any]:
        logits, _ = apply(params, {}, batch.image, jax.random.key(0))
        return losses.cross_entropy(logits, batch.label), logits

    compiled = jax.jit(jax.value_and_grad(loss_of, has_aux=True)).lower(params, batch).compile()
    (loss, logits), grads = jax.device_get(compiled(params, batch))
    exact = {"logits": logits, "loss": loss}
    return Values(exact, sketch.of(_flat(encoder.unstack(grads))), _held(compiled))


def _sam_step(inputs: Inputs, dtype: str) -> Values:
    """Runs a step of a ReMem teacher; SAM's gradient is read from the momentum."""
    model, params = _vit(inputs, dtype, mlp_weight=MLP_WEIGHT)
    tx = optim.sgd(lambda _: 0.01, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=None)
    step = steps.make_supervised_step(
        models.train_apply(model),
        tx,
        lambda key, stored: stored,
        key=jax.random.key(0),
        loss=losses.cross_entropy,
        mixing=Mixing(),
        ascent=sam.sam(RHO),
        division=Division(looped=platforms.has_sam_loop(jax.devices()[0])),  # Same as in a run.
    )
    arguments = state.create({"params": params}, tx), _batch(inputs), {}
    compiled = jax.jit(step).lower(*arguments).compile()
    ended, metrics = jax.device_get(compiled(*arguments))
    exact = {"loss": metrics["loss"], "ascent_norm": metrics["ascent_norm"]}
    gradient = encoder.unstack(_momentum(ended.opt_state, params))
    return Values(exact, sketch.of(_flat(gradient)), _held(compiled))


def _kd_step(inputs: Inputs, dtype: str) -> Values:
    """Runs a step of a student after a forward pass of its teacher."""
    model, params = _vit(inputs, dtype)
    batch, compute_targets = _batch(inputs), models.teacher_apply(model)
    student: Any = models.make(inputs.student, classes=model.classes, dtype=dtype)
    tx = optim.sgd(lambda _: 1.0, momentum=0.9, nesterov=True, weight_decay=0.0, clip_norm=None)
    loss = functools.partial(student_losses.LOSSES["kd"], hard_labels=True)
    step = steps.make_student_step(
        models.student_apply(student), tx, loss=loss, key=jax.random.key(0)
    )
    with jax.default_device(jax.devices("cpu")[0]):  # So that GPU and CPU start equally.
        first = jax.device_get(models.init(student, jax.random.key(0), inputs.images.shape[1]))
    first = jax.tree.map_with_path(_with_scales, first)

    def teacher_and_student(now: state.State, batch: Batch, params: Any) -> Any:
        targets = compute_targets({"params": params}, batch.image)
        return step(now, batch.image, batch.label, targets, Hyperparameters(0.1, 4.0, 0.5, 0))

    arguments = state.create(first, tx), batch, params
    compiled = jax.jit(teacher_and_student).lower(*arguments).compile()
    ended, metrics = jax.device_get(compiled(*arguments))
    gradient = _momentum(ended.opt_state, first["params"])
    return Values({"loss": metrics["loss"]}, sketch.of(_flat(gradient)), _held(compiled))


def _with_scales(path: Any, leaf: Any) -> Any:
    """Sets scales to 1: where they start at 0, convolutions would have no gradient."""
    return np.ones_like(leaf) if path[-1].key == "scale" else leaf


def _vit(inputs: Inputs, dtype: str, **options: Any) -> tuple[Any, Any]:
    """Returns the model and its stacked parameters, as in training."""
    model, variables = augreg.make(
        inputs.weights, image_size=inputs.images.shape[1], dtype=dtype, **options
    )
    return model, encoder.stack(jax.tree.map(jnp.asarray, variables["params"]))


def _batch(inputs: Inputs) -> Batch:
    images = inputs.images.astype(np.float32) / 127.5 - 1
    labels = jnp.asarray(inputs.labels, jnp.int32)
    return Batch(jnp.asarray(images), labels, jnp.ones(len(labels), bool))


def _momentum(opt_state: Any, params: Any) -> Any:
    """Returns the only tree in an optimiser's state that has the structure of the parameters."""
    structure = jax.tree.structure(params)
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda node: jax.tree.structure(node) == structure)
    (momentum,) = [node for node in leaves if jax.tree.structure(node) == structure]
    return momentum


def _flat(tree: Any) -> dict[str, np.ndarray]:
    return augreg.flatten(tree)


def _held(compiled: Any) -> int | None:
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    sizes = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(memory, size) for size in sizes) - memory.alias_size_in_bytes

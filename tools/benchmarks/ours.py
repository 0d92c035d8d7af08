"""Our side of a row."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from remem_jax import losses, mesh, models, optim, platforms, sam
from remem_jax.data.images.augment import Mixing
from remem_jax.models import encoder
from remem_jax.records import Batch, Hyperparameters, Outputs
from remem_jax.train import flops, state, steps, student_losses
from remem_jax.train.division import Division
from tools.benchmarks import turns
from tools.benchmarks.rows import Work

CLASSES = 1000


def make(work: Work) -> turns.Side:
    """Returns our side of some work, ready to run; the first run compiles."""
    mesh.require_devices()  # Our commands call it, too; it keeps freed host memory for reuse.
    return {"forward": _forward, "step": _step, "student": _student, "kd": _kd}[work.kind](work)


def compile_step(work: Work) -> float:
    """Returns the CPU-seconds of tracing and compiling a ViT's step."""
    jax.config.update("jax_enable_compilation_cache", False)
    step, arguments = _vit_step(work)
    started = time.process_time()
    step.lower(*arguments).compile()
    return time.process_time() - started


def _images(work: Work) -> jax.Array:
    return jnp.asarray(turns.images(work))


def _vit(work: Work) -> Any:
    return models.make(
        "vit",
        variant=work.variant,
        classes=CLASSES,
        gelu="erf",  # Same as timm's.
        dtype=work.dtype,
        rematerialise=work.rematerialise,
    )


def _forward(work: Work) -> turns.Side:
    model, images = _vit(work), _images(work)
    variables = models.init(model, jax.random.key(1), work.pixels)
    apply = jax.jit(models.evaluation_apply(model))
    last: list[Any] = [None]

    def run() -> Any:
        last[0] = apply(variables, images)
        return last[0]

    return turns.Side(
        run,
        lambda: jax.block_until_ready(last[0]),
        lambda: flops.count(apply, variables, images),
        _peak_memory,
    )


def _step(work: Work) -> turns.Side:
    step, (first, batch, frozen) = _vit_step(work)
    now = [first]

    def run() -> None:
        now[0], _ = step(now[0], batch, frozen)

    return turns.Side(
        run,
        lambda: jax.block_until_ready(now[0]),
        lambda: flops.count(step, now[0], batch, frozen),
        _peak_memory,
    )


def _vit_step(work: Work) -> tuple[Any, tuple[state.State, Batch, Any]]:
    model = _vit(work)
    tx = optim.sgd(lambda _: 0.01, momentum=0.9, nesterov=False, weight_decay=0.0, clip_norm=None)
    step = jax.jit(
        steps.make_supervised_step(
            models.train_apply(model),
            tx,
            lambda key, stored: stored,
            key=jax.random.key(0),
            ascent=sam.sam(work.rho) if work.rho else None,
            division=Division(
                accumulate=work.accumulate, looped=platforms.has_sam_loop(jax.devices()[0])
            ),
            loss=losses.cross_entropy,
            mixing=Mixing(),
        ),
        donate_argnums=0,
    )
    params = encoder.stack(models.init(model, jax.random.key(0), work.pixels)["params"])
    batch = Batch(_images(work), jnp.arange(work.batch), jnp.ones(work.batch, bool))
    return step, (state.create({"params": params}, tx), batch, {})


def _student(work: Work) -> turns.Side:
    """Returns a student's step without a teacher: the distillation loss has weight 0."""
    zero_logits = jnp.zeros((work.batch, CLASSES))
    return _student_step(
        work, turns.Side(lambda: zero_logits, lambda: None, lambda: 0.0, _peak_memory), weight=0.0
    )


def _kd(work: Work) -> turns.Side:
    return _student_step(work, _forward(work), weight=0.5)


def _student_step(work: Work, teacher: turns.Side, *, weight: float) -> turns.Side:
    model: Any = models.make(work.student, classes=CLASSES, dtype=work.dtype)
    tx = optim.sgd(lambda _: 1.0, momentum=0.9, nesterov=True, weight_decay=1e-4, clip_norm=None)
    step = jax.jit(
        steps.make_student_step(
            models.student_apply(model),
            tx,
            loss=functools.partial(student_losses.LOSSES["kd"], hard_labels=True),
            key=jax.random.key(0),
        ),
        donate_argnums=0,
    )
    now = [state.create(models.init(model, jax.random.key(0), work.pixels), tx)]
    images, labels = _images(work), jnp.arange(work.batch)
    hyperparameters = Hyperparameters(0.01, 4.0, weight, 0)

    def run() -> None:
        now[0], _ = step(now[0], images, labels, Outputs(teacher.run()), hyperparameters)

    def count() -> float:
        targets = Outputs(jnp.zeros((work.batch, CLASSES)))
        return teacher.operations() + flops.count(
            step, now[0], images, labels, targets, hyperparameters
        )

    return turns.Side(run, lambda: jax.block_until_ready(now[0]), count, _peak_memory)


def _peak_memory() -> int | None:
    stats = jax.devices()[0].memory_stats()  # None on a CPU.
    return stats and stats["peak_bytes_in_use"]

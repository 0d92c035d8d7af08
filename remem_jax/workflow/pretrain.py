"""Pretrains a small ViT from scratch, like the bundled teacher, and measures a linear probe."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import evaluate, losses, mesh, models, optim, random_streams
from remem_jax.data.images.augment import Mixing
from remem_jax.records import Apply, TrainApply, Variables
from remem_jax.settings import located
from remem_jax.settings import memory as memory_settings
from remem_jax.storage import results, workdir
from remem_jax.train import flops, state, steps
from remem_jax.weights import augreg
from remem_jax.workflow import context, memory_plan, provenance, step_memory, training

_MILESTONES = 10  # Number of evaluations during training.
_BETAS, _EPSILON = (0.9, 0.99), 1e-8  # Of AdamW.


def run_pretrain(run: context.Run) -> None:
    """Trains a ViT with AdamW; writes `pretrained.npz` in AugReg names, and `results.json`."""
    config, settings = run.config, run.config.train
    workdir.begin(run.workdir, located(config), provenance.identity(run, {}))
    size, classes = config.data.image_size, len(run.dataset.classes)
    model = models.make(
        "vit",
        variant=config.model.variant,
        classes=classes,
        dropout=config.model.dropout,
        dtype=config.compute_dtype,
    )
    apply = models.evaluation_apply(model)
    init = models.make_init(model, size)
    init_key = random_streams.key(config.seed, "pretraining", "parameters")
    tx = optim.adamw(
        optim.warmup_cosine(
            peak=settings.learning_rate, steps=settings.steps, warmup_steps=settings.warmup_steps
        ),
        betas=_BETAS,
        epsilon=_EPSILON,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )

    first = run.jit_create(lambda key: state.create(init(key), tx), init_key)
    shapes = run.shapes(jax.eval_shape(first, init_key))

    @functools.cache
    def jit_step(plan: memory_plan.Plan) -> Any:
        make = functools.partial(
            steps.make_supervised_step,
            run.gather_params(train_apply(plan.rematerialise)),
            tx,
            run.train_transform,
            loss=functools.partial(losses.cross_entropy, smoothing=settings.label_smoothing),
            division=memory_settings.division(
                settings, run.mesh, plan.accumulate, name="config.train"
            ),
            mixing=Mixing(),
        )
        return run.jit_step_with_key(make, random_streams.key(config.seed, "pretraining"), shapes)

    def train_apply(rematerialise: str) -> TrainApply:
        return models.train_apply(model.clone(rematerialise=rematerialise))

    def features(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, method="pre_logits")

    plan = memory_plan.planned(run, _planned_step(run, model, shapes, train_apply, jit_step))
    jitted = counted = jit_step(plan)
    if plan.rematerialise != "nothing":  # Recomputation does not count.
        counted = jit_step(plan._replace(rematerialise="nothing"))
    measure = context.make_measure(run, apply, settings.batch_size)
    last, seconds = training.train(
        run,
        "pretrain",
        training.Job(
            shapes,
            lambda: first(init_key),
            lambda first_step, rate: lambda state, batch: jitted(state, batch, {}),
            batch_size=settings.batch_size,
            operations=lambda state, batch: flops.count(counted, state, batch, {}),
            steps=settings.steps,
            milestones=tuple(settings.steps * i // _MILESTONES for i in range(1, _MILESTONES + 1)),
            milestone=lambda step, trained: training.log_validation(
                run, "pretrain", step, measure(trained.variables, "validation")["top1"]
            ),
            stream="pretraining",
            lost=set(),
        ),
    )
    path = run.workdir / "pretrained.npz"
    trained = run.fetch(last.params)
    if mesh.is_writer():
        augreg.save(path, trained, dtype="float16")
    mesh.broadcast(1)  # Wait until the file is written.
    stored = run.place(augreg.load(path, model))  # Evaluate the weights as saved.
    record = {
        "test": measure(stored, "test"),
        "seconds": seconds,
        "plan": memory_plan.read(run, "pretrain"),
        "bytes": path.stat().st_size,
    }
    if config.probe.name:
        random = run.jit_create(init, init_key)(init_key)
        record["probe"] = probes(run, features, {"pretrained": stored, "random": random})
    results.write_for_all(run.workdir / "results.json", record)
    logging.info("%s: %.2f %% on test.", path, 100 * record["test"]["top1"])
    for name, accuracy in record.get("probe", {}).items():
        logging.info("A linear probe of %s features: %.2f %%.", name, 100 * accuracy)


def _planned_step(
    run: context.Run,
    model: Any,
    shapes: state.State,
    train_apply: Callable[[str], TrainApply],
    jit_step: Callable[[memory_plan.Plan], Any],
) -> memory_plan.Step:
    settings, image_size = run.config.train, run.config.data.image_size

    def needs(plan: memory_plan.Plan) -> tuple[int, int]:
        batch = step_memory.batch(run, settings.batch_size)
        return step_memory.of_step(jit_step(plan), shapes, batch, {})

    return memory_plan.Step(
        "pretrain",
        "config.train",
        memory_plan.candidates(
            settings, run.mesh, tokens=(image_size // model.size.pixels) ** 2 + 1
        ),
        train_apply,
        shapes.params,
        {},
        mesh.device_bytes(shapes),
        needs,
        (image_size, image_size, 3),
        settings.batch_size // run.mesh.size,
        run.platform,
    )


def probes(
    run: context.Run, apply: Apply, named_variables: Mapping[str, Variables]
) -> dict[str, float]:
    """Returns the top-1 accuracy of linear probes on the data set that `config.probe` names.

    Args:
        run: The run.
        apply: Function from variables and images to features.
        named_variables: Variables by name; images are read once for all of them.
    """
    config = run.config
    settings = config.data.copy_and_resolve_references()
    settings.update(config.probe)
    _, loader = context.load_data(config, settings, run.mesh)
    transform, features = (
        context.evaluation_transform(loader, run.mesh),
        jax.jit(run.gather_params(apply)),
    )

    def examples(split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        collected: dict[str, list[np.ndarray]] = {name: [] for name in named_variables}
        labels: list[np.ndarray] = []
        for batch in loader.evaluation(split, config.train.batch_size):
            images = transform(batch.image)
            label, counts = run.fetch((batch.label, batch.mask))
            labels.append(label[counts])
            for name, variables in named_variables.items():
                collected[name].append(run.fetch(features(variables, images))[counts])
        concatenated = {name: np.concatenate(batches) for name, batches in collected.items()}
        return concatenated, np.concatenate(labels)

    (train, train_labels), (test, test_labels) = examples("train"), examples("test")
    return {
        name: evaluate.linear_probe((train[name], train_labels), (test[name], test_labels))
        for name in named_variables
    }

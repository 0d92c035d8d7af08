"""How the bundled teacher was made: a small ViT from scratch, with a linear probe beside it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import evaluate, losses, mesh, models, optim
from remem_jax.records import Apply, TrainApply, Variables
from remem_jax.settings import located
from remem_jax.settings import memory as memory_settings
from remem_jax.storage import results, workdir
from remem_jax.train import flops, state, steps
from remem_jax.weights import augreg
from remem_jax.workflow import activations, facts, memory, parts

_MILESTONES = 10  # Evaluations on the way.


def run_pretrain(run: parts.Run) -> None:
    """Trains a ViT with AdamW; writes `pretrained.npz` in AugReg names, and `results.json`."""
    config, settings = run.config, run.config.train
    workdir.begin(run.workdir, located(config), facts.identity(run, {}))
    size, classes = config.data.image_size, len(run.dataset.classes)
    model = models.make(
        "vit",
        variant=config.model.variant,
        classes=classes,
        dropout=config.model.dropout,
        dtype=config.compute_dtype,
    )
    apply = models.evaluation_apply(model)
    random = models.init(model, jax.random.key(config.seed), size)
    tx = optim.adamw(
        optim.warmup_cosine(
            peak=settings.learning_rate, steps=settings.steps, warmup_steps=settings.warmup_steps
        ),
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )

    def first_state() -> state.State:
        return state.create(random, tx)

    @functools.cache
    def jit_step(plan: activations.Plan) -> Any:
        step = steps.make_supervised_step(
            run.spread(train_apply(plan.rematerialise)),
            tx,
            run.feed.train_view,
            key=jax.random.key(config.seed),
            loss=functools.partial(losses.cross_entropy, smoothing=settings.label_smoothing),
            division=memory_settings.division(
                settings, run.mesh, plan.accumulate, name="config.train"
            ),
        )
        return run.jit_step(step, first_state)

    def train_apply(rematerialise: str) -> TrainApply:
        return models.train_apply(model.clone(rematerialise=rematerialise))

    def features(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, method="pre_logits")

    plan = activations.planned(run, _planned_step(run, model, first_state, train_apply, jit_step))
    jitted, counted = jit_step(plan), jit_step(plan._replace(rematerialise="nothing"))
    measure = parts.make_measure(run, apply, settings.batch_size)
    last, seconds = parts.train(
        run,
        "pretrain",
        parts.Job(
            run.place(first_state()),
            lambda first_step: functools.partial(jitted, frozen={}),
            batch_size=settings.batch_size,
            operations=lambda state, batch: flops.count(counted, state, batch, {}),
            steps=settings.steps,
            milestones=tuple(settings.steps * i // _MILESTONES for i in range(1, _MILESTONES + 1)),
            milestone=lambda at, now: parts.log_validation(
                run, "pretrain", at, measure(now.variables, "validation")["top1"]
            ),
        ),
    )
    path = run.workdir / "pretrained.npz"
    trained = run.fetch(last.params)
    if mesh.is_writer():
        augreg.save(path, trained, dtype="float16")
    mesh.told_by_writer(1)  # That it is there.
    stored = run.place(augreg.load(path, model))  # What is measured is what is stored.
    found = {
        "test": measure(stored, "test"),
        "seconds": seconds,
        "plan": activations.read(run, "pretrain"),
        "bytes": path.stat().st_size,
    }
    if config.probe.name:
        found["probe"] = {
            name: probe(run, features, variables)
            for name, variables in (("pretrained", stored), ("random", run.place(random)))
        }
    results.write_for_all(run.workdir / "results.json", found)
    logging.info("Pretrained: %s", found)


def _planned_step(
    run: parts.Run,
    model: Any,
    first_state: Callable[[], state.State],
    train_apply: Callable[[str], TrainApply],
    jit_step: Callable[[activations.Plan], Any],
) -> activations.Step:
    settings, image_size = run.config.train, run.config.data.image_size
    own = run.shapes(jax.eval_shape(first_state))

    def needs(plan: activations.Plan) -> tuple[int, int]:
        batch = memory.batch(run, settings.batch_size)
        return memory.of_step(jit_step(plan), own, batch, {})

    return activations.Step(
        "pretrain",
        "config.train",
        activations.candidates(
            settings, run.mesh, tokens=(image_size // model.size.pixels) ** 2 + 1
        ),
        train_apply,
        own.params,
        {},
        mesh.device_bytes(own),
        needs,
        (image_size, image_size, 3),
        settings.batch_size // run.mesh.size,
    )


def probe(run: parts.Run, apply: Apply, variables: Variables) -> float:
    """Top-1 of a linear probe of a model's features on the data set that `config.probe` names."""
    config = run.config
    settings = config.data.copy_and_resolve_references()
    settings.update(config.probe)
    _, feed = parts.load_data(config, settings, run.mesh)
    features = jax.jit(evaluate.make_predict(run.spread(apply), feed.evaluation_view))

    def examples(split: str) -> tuple[np.ndarray, np.ndarray]:
        batches = feed.evaluation(split, config.train.batch_size)
        whole = [run.fetch((features(variables, b), b.label, b.mask)) for b in batches]
        found = [(one[counts], labels[counts]) for one, labels, counts in whole]
        return np.concatenate([f for f, _ in found]), np.concatenate([y for _, y in found])

    return evaluate.linear_probe(examples("train"), examples("test"))

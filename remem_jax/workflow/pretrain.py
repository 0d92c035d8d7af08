"""How the bundled teacher was made: a small ViT from scratch, with a linear probe beside it."""

import functools
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import evaluate, losses, mesh, models, optim
from remem_jax.records import Apply, Variables
from remem_jax.settings import located
from remem_jax.storage import results, workdir
from remem_jax.train import flops, state, steps
from remem_jax.weights import augreg
from remem_jax.workflow import facts, parts

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
        rematerialise=jax.default_backend() == "cpu",
    )
    apply = models.evaluation_apply(model)
    init, init_key = models.make_init(model, size), jax.random.key(config.seed)
    tx = optim.adamw(
        optim.warmup_cosine(
            peak=settings.learning_rate, steps=settings.steps, warmup_steps=settings.warmup_steps
        ),
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
    )
    step = steps.make_supervised_step(
        run.spread(models.train_apply(model)),
        tx,
        run.feed.train_view,
        key=jax.random.key(config.seed),
        loss=functools.partial(losses.cross_entropy, smoothing=settings.label_smoothing),
    )

    first = run.jit_create(lambda key: state.create(init(key), tx), init_key)
    shapes = run.shapes(jax.eval_shape(first, init_key))

    def features(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, method="pre_logits")

    jitted = run.jit_step(step, shapes)
    measure = parts.make_measure(run, apply, settings.batch_size)
    last, seconds = parts.train(
        run,
        "pretrain",
        parts.Job(
            shapes,
            lambda: first(init_key),
            lambda first_step: functools.partial(jitted, frozen={}),
            batch_size=settings.batch_size,
            operations=lambda state, batch: flops.count(jitted, state, batch, {}),
            steps=settings.steps,
            milestones=tuple(settings.steps * i // _MILESTONES for i in range(1, _MILESTONES + 1)),
            milestone=lambda at, now: parts.log_validation(
                run, "pretrain", at, measure(now.variables, "validation")["top1"]
            ),
            lost=set(),
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
        "bytes": path.stat().st_size,
    }
    if config.probe.name:
        random = run.jit_create(init, init_key)(init_key)
        found["probe"] = {
            name: probe(run, features, variables)
            for name, variables in (("pretrained", stored), ("random", random))
        }
    results.write_for_all(run.workdir / "results.json", found)
    logging.info("Pretrained: %s", found)


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

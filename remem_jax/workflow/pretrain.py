"""How the bundled teacher was made: a small ViT from scratch, with a linear probe beside it."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import evaluate, losses, mesh, models, optim, random_streams
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
    random = models.init(model, random_streams.key(config.seed, "pretraining", "parameters"), size)
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
        key=random_streams.key(config.seed, "pretraining"),
        loss=functools.partial(losses.cross_entropy, smoothing=settings.label_smoothing),
    )

    def first_state() -> state.State:
        return state.create(random, tx)

    def features(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, method="pre_logits")

    jitted = run.jit_step(step, first_state)
    measure = parts.make_measure(run, apply, settings.batch_size)
    last, seconds = parts.train(
        run,
        "pretrain",
        parts.Job(
            run.place(first_state()),
            lambda first_step: functools.partial(jitted, frozen={}),
            batch_size=settings.batch_size,
            operations=lambda state, batch: flops.count(jitted, state, batch, {}),
            steps=settings.steps,
            milestones=tuple(settings.steps * i // _MILESTONES for i in range(1, _MILESTONES + 1)),
            milestone=lambda at, now: parts.log_validation(
                run, "pretrain", at, measure(now.variables, "validation")["top1"]
            ),
            stage="pretraining",
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
        compared = {"pretrained": stored, "random": run.place(random)}
        found["probe"] = probes(run, features, compared)
    results.write_for_all(run.workdir / "results.json", found)
    logging.info("Pretrained: %s", found)


def probes(run: parts.Run, apply: Apply, compared: Mapping[str, Variables]) -> dict[str, float]:
    """Top-1 of linear probes of a model's features on the data set that `config.probe` names.

    Args:
        run: The run.
        apply: From variables and images to features.
        compared: Variables by name; the images are read once for all of them.
    """
    config = run.config
    settings = config.data.copy_and_resolve_references()
    settings.update(config.probe)
    _, feed = parts.load_data(config, settings, run.mesh)
    view, features = parts.evaluation_view(feed, run.mesh), jax.jit(run.spread(apply))

    def examples(split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
        seen: dict[str, list[np.ndarray]] = {name: [] for name in compared}
        labels: list[np.ndarray] = []
        for batch in feed.evaluation(split, config.train.batch_size):
            images = view(batch.image)
            label, counts = run.fetch((batch.label, batch.mask))
            labels.append(label[counts])
            for name, variables in compared.items():
                seen[name].append(run.fetch(features(variables, images))[counts])
        whole = {name: np.concatenate(batches) for name, batches in seen.items()}
        return whole, np.concatenate(labels)

    (train, train_labels), (test, test_labels) = examples("train"), examples("test")
    return {
        name: evaluate.linear_probe((train[name], train_labels), (test[name], test_labels))
        for name in compared
    }

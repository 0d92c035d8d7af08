"""How the bundled teacher was made: a small ViT from scratch, with a linear probe beside it."""

import functools
from typing import Any

import jax
import numpy as np
from absl import logging

from remem_jax import evaluate, models, optim
from remem_jax.records import Apply, Variables
from remem_jax.settings import deciding
from remem_jax.storage import results, workdir
from remem_jax.train import state, steps
from remem_jax.weights import augreg
from remem_jax.workflow import parts

_MILESTONES = 10  # Evaluations on the way.


def run_pretrain(run: parts.Run) -> None:
    """Trains a ViT with AdamW; writes `pretrained.npz` in AugReg names, and `results.json`."""
    config, settings = run.config, run.config.train
    workdir.begin(
        run.workdir, deciding(config), {"data": run.dataset.fingerprint, "input": run.feed.kind}
    )
    size, classes = config.data.image_size, len(run.dataset.classes)
    model = models.make(
        "vit",
        variant=config.model.variant,
        classes=classes,
        dropout=config.model.dropout,
        rematerialise=jax.default_backend() == "cpu",
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
    step = steps.make_supervised_step(
        models.train_apply(model),
        tx,
        run.feed.train_view,
        key=jax.random.key(config.seed),
        label_smoothing=settings.label_smoothing,
    )

    def features(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, method="pre_logits")

    measure = parts.make_measure(run, apply, settings.batch_size)
    last, seconds = parts.train(
        run,
        "pretrain",
        state.create(random, tx),
        functools.partial(jax.jit(step, donate_argnums=0), frozen={}),
        batch_size=settings.batch_size,
        steps=settings.steps,
        milestones=tuple(settings.steps * i // _MILESTONES for i in range(1, _MILESTONES + 1)),
        milestone=lambda at, now: parts.log_validation(
            run, "pretrain", at, measure(now.variables, "validation")["top1"]
        ),
    )
    path = run.workdir / "pretrained.npz"
    augreg.save(path, last.params, dtype="float16")
    stored = augreg.load(path, model)  # What is measured is what is stored.
    found = {
        "test": measure(stored, "test"),
        "seconds": seconds,
        "bytes": path.stat().st_size,
    }
    if config.probe.name:
        found["probe"] = {
            name: probe(run, features, variables)
            for name, variables in (("pretrained", stored), ("random", random))
        }
    results.write(run.workdir / "results.json", found)
    logging.info("Pretrained: %s", found)


def probe(run: parts.Run, apply: Apply, variables: Variables) -> float:
    """Top-1 of a linear probe of a model's features on the data set that `config.probe` names."""
    config = run.config
    settings = config.data.copy_and_resolve_references()
    settings.update(config.probe)
    _, feed = parts.load_data(config, settings)
    view = feed.evaluation_view
    features = jax.jit(lambda images: apply(variables, view(jax.random.key(0), images)))

    def examples(split: str) -> tuple[np.ndarray, np.ndarray]:
        batches = feed.evaluation(split, config.train.batch_size)
        found = [
            (np.asarray(features(b.image))[b.mask], np.asarray(b.label)[b.mask]) for b in batches
        ]
        return np.concatenate([f for f, _ in found]), np.concatenate([y for _, y in found])

    return evaluate.linear_probe(examples("train"), examples("test"))

"""Teachers: a pretrained ViT, fine-tuned by a method; each of its checkpoints is a teacher."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from remem_jax import models, optim
from remem_jax.models import vit
from remem_jax.records import Apply, Params, Variables
from remem_jax.settings import METHODS
from remem_jax.storage import checkpoints, results
from remem_jax.train import state, steps
from remem_jax.weights import augreg, catalog
from remem_jax.workflow import parts


class Teachers(NamedTuple):
    """The teachers of one method: the checkpoints of one fine-tuning.

    Attributes:
        method: Name in `METHODS`.
        part: Name of its part of the run.
        settings: `config.teacher` as the method changes it.
        apply: A teacher in evaluation mode.
        load: Variables of the teacher after so many steps.
        measure: Metrics of a teacher on a split.
        records: One per checkpoint: "step" and "validation".
        seconds: What the training took.
    """

    method: str
    part: str
    settings: ConfigDict
    apply: Apply
    load: Callable[[int], Variables]
    measure: parts.Measure
    records: list[dict[str, Any]]
    seconds: float


def finetune(run: parts.Run, method: str) -> Teachers:
    """Trains the teachers of a method; where that is done, reads what is there."""
    part = f"teachers/{method}"
    folder = run.workdir / part
    settings = settings_of(run.config, method)
    model = _make_model(run, settings)
    apply = models.evaluation_apply(model)
    measure = parts.make_measure(run, apply, settings.batch_size)
    like = models.shapes(model, run.config.data.image_size)

    def load(at: int) -> Variables:
        return {"params": checkpoints.load_tree(folder / f"step_{at}" / "params", like)}

    def milestone(at: int, now: state.State) -> None:
        metrics = measure(now.variables, "validation")
        parts.log_validation(run, part, at, metrics[run.dataset.metric])
        checkpoints.save_tree(folder / f"step_{at}" / "params", now.params)
        results.write(folder / f"step_{at}" / "record.json", {"step": at, "validation": metrics})

    done = results.read(folder / "result.json")
    if done is None:
        seconds = _train(run, part, settings, model, milestone)
        found = [results.read(folder / f"step_{at}" / "record.json") for at in settings.steps]
        done = {"teachers": found, "seconds": seconds}
        results.write(folder / "result.json", done)
        checkpoints.remove(folder / parts.CHECKPOINTS)
    return Teachers(method, part, settings, apply, load, measure, done["teachers"], done["seconds"])


def _train(
    run: parts.Run,
    part: str,
    settings: ConfigDict,
    model: vit.VisionTransformer,
    milestone: Callable[[int, state.State], None],
) -> float:
    """Fine-tunes from the pretrained weights to the last step; the seconds that it took."""
    schedule = optim.warmup_cosine(
        peak=settings.learning_rate,
        steps=settings.steps[-1],
        warmup_steps=settings.warmup_steps,
    )
    tx = optim.sgd(
        schedule,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        rho=settings.rho,
        clip_norm=settings.clip_norm,
    )
    step = steps.make_supervised_step(
        models.train_apply(model),
        tx,
        parts.train_view(run),
        key=jax.random.key(run.config.seed),
    )
    _, seconds = parts.train(
        run,
        part,
        state.create(_pretrained(model, run), tx),
        jax.jit(step, donate_argnums=0),
        batch_size=settings.batch_size,
        steps=settings.steps[-1],
        milestones=tuple(settings.steps),
        milestone=milestone,
    )
    return seconds


def settings_of(config: ConfigDict, method: str) -> ConfigDict:
    """`config.teacher` as a method changes it."""
    settings = config.teacher.copy_and_resolve_references()
    settings.update(METHODS[method] or {})
    return settings


def check_init(run: parts.Run) -> Params:
    """Reads the pretrained weights into a plain teacher, so that a misfit stops the run now."""
    plain = _make_model(run, settings_of(run.config, "finetune"))
    return _pretrained(plain, run)["params"]


def _make_model(run: parts.Run, settings: ConfigDict) -> vit.VisionTransformer:
    model: Any = models.make(
        settings.model,
        variant=settings.variant,
        classes=len(run.dataset.classes),
        mlp_weight=settings.mlp_weight,
        attention_weight=settings.attention_weight,
        residual=settings.residual,
        dropout=settings.dropout,
        # On a CPU, recomputing a block is cheaper than fetching what it stored.
        rematerialise=jax.default_backend() == "cpu",
    )
    return model


def _pretrained(model: vit.VisionTransformer, run: parts.Run) -> Variables:
    path = catalog.locate(run.config.teacher.init)
    return augreg.load(path, model, image_size=run.config.data.image_size, reset_head=True)

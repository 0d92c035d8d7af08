"""Teachers: a pretrained ViT, fine-tuned by a method; each of its checkpoints is a teacher."""

from typing import Any

import jax
from ml_collections import ConfigDict

from remem_jax import models, optim
from remem_jax.models import vit
from remem_jax.records import Params, Variables
from remem_jax.settings import METHODS
from remem_jax.storage import checkpoints, results
from remem_jax.train import state, steps
from remem_jax.weights import augreg, catalog
from remem_jax.workflow import parts


class Teachers:
    """The teachers of one method.

    Attributes:
        method: Name in `METHODS`.
        settings: `config.teacher` as the method changes it.
        apply: The teacher in evaluation mode.
        measure: Its metrics on a split.
        records: One per checkpoint: "step" and "validation".
        seconds: What the training took.
    """

    def __init__(self, run: parts.Run, method: str) -> None:
        """Makes the model and reads what is trained already."""
        self.method = method
        self.settings = settings_of(run.config, method)
        self._run = run
        self._folder = run.workdir / "teachers" / method
        self._model = _make_model(run, self.settings)
        self.apply = models.evaluation_apply(self._model)
        self.measure = parts.Measure(run, self.apply, self.settings.batch_size)
        self._read(results.read(self._folder / "result.json"))

    def _read(self, result: dict[str, Any] | None) -> None:
        self.records: list[dict[str, Any]] = result["teachers"] if result else []
        self.seconds: float = result["seconds"] if result else 0.0

    def finetune(self) -> None:
        """Trains to the last step; does nothing where that is done."""
        if self.records:
            return
        run, settings, part = self._run, self.settings, f"teachers/{self.method}"
        first = _pretrained(self._model, run)
        tx = optim.sgd(
            optim.warmup_cosine(
                peak=settings.learning_rate,
                steps=settings.steps[-1],
                warmup_steps=settings.warmup_steps,
            ),
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            rho=settings.rho,
            clip_norm=settings.clip_norm,
        )
        step = steps.make_supervised_step(
            models.train_apply(self._model),
            tx,
            parts.train_view(run),
            key=jax.random.key(run.config.seed),
        )

        def milestone(at: int, now: state.State) -> None:
            metrics = self.measure(now.variables, "validation")
            parts.log_validation(run, part, at, metrics[run.dataset.metric])
            checkpoints.save_tree(self._folder / f"step_{at}" / "params", now.params)
            results.write(
                self._folder / f"step_{at}" / "record.json", {"step": at, "validation": metrics}
            )

        _, seconds = parts.train(
            run,
            part,
            state.create(first, tx),
            jax.jit(step, donate_argnums=0),
            batch_size=settings.batch_size,
            steps=settings.steps[-1],
            milestones=tuple(settings.steps),
            milestone=milestone,
        )
        found = [results.read(self._folder / f"step_{at}/record.json") for at in settings.steps]
        results.write(self._folder / "result.json", {"teachers": found, "seconds": seconds})
        checkpoints.remove(self._folder / parts.CHECKPOINTS)
        self._read(results.read(self._folder / "result.json"))

    def variables(self, at: int) -> Variables:
        """The teacher after `at` steps."""
        like = models.shapes(self._model, self._run.config.data.image_size)
        return {"params": checkpoints.load_tree(self._folder / f"step_{at}" / "params", like)}


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

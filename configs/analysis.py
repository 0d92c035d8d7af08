"""Analyses of checkpoints without fine-tuning: information, expertness, criticality.

    python -m remem_jax.main --config=configs/analysis.py:caltech101,init=augreg:Ti/16 \
        --workdir=analyses/mine
    python -m remem_jax.main --workdir=analyses/both \
        --config="configs/analysis.py:folder,init=Ti_16.npz|runs/mine/selected/remem_teacher.npz" \
        --config.data.path=my_images

A checkpoint is any value of `config.teacher.init`, including a teacher that a run has written.
configs/settings.py has all settings; configs/figures/ uses the functions below for the paper's
figures.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import settings
from remem_jax.weights import catalog, teacher_sources

ANALYSES = ("information", "expertness", "criticality")
# Pretrainings, the weakest first, each with its title and its checkpoint of a ViT-B/16.
STRENGTHS = {
    name: (title, catalog.TABLE_4[title])
    for name, title in (
        ("i1k", "ImageNet-1k"),
        ("i21k", "ImageNet-21K"),
        ("augreg", "ImageNet-21k (augreg)"),
    )
}
# The same for a ViT-Ti/16; no checkpoint of the third pretraining is published.
SMALL_STRENGTHS = {
    "i1k": ("ImageNet-1k", "augreg-i1k:Ti/16"),
    "augreg": ("ImageNet-21k (augreg)", "augreg:Ti/16"),
}


def get_config(spec: str = "caltech101") -> ConfigDict:
    """Returns the config of an analysis of one or several checkpoints.

    Args:
        spec: Name of the data set, then options: "flowers102,init=a.npz|b.npz,analyses=expertness".
            A | separates several checkpoints or analyses.
    """
    dataset, *pairs = spec.split(",")
    options = {"init": "augreg:B/16", "analyses": "|".join(ANALYSES)}
    for name, _, value in (pair.partition("=") for pair in pairs):
        if name not in options:
            raise ValueError(
                f"configs/analysis.py has no option {name!r}; known: {', '.join(options)}."
            )
        options[name] = value
    inits = options["init"].split("|")
    titles = [_name(init) for init in inits]
    if len(set(titles)) < len(titles):  # Files with the same name in different folders.
        titles = inits
    chosen = {
        f"model_{i}": model(title, init)
        for i, (title, init) in enumerate(zip(titles, inits, strict=True))
    }
    return make(f"Analysis on {dataset}", chosen, tuple(options["analyses"].split("|")), dataset)


def _name(init: str) -> str:
    """Returns the name of a checkpoint: its published name, or its file name without suffix."""
    is_published = catalog.is_name(init) or teacher_sources.on_hub(init)
    return init if is_published else pathlib.PurePath(init).stem


def model(title: str, init: str, **changes: Any) -> dict[str, Any]:
    """Returns an entry of `config.models`: a title, and the settings that `config.teacher` gets."""
    teacher = {"init": init, "variant": "", "gelu": "", "pruned_mlp": 0, "pruned_attention": 0}
    return {"title": title, "teacher": teacher | changes}


def models(strengths: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Returns entries of `config.models` for checkpoints of different pretrainings."""
    return {name: model(title, init) for name, (title, init) in strengths.items()}


def make(
    title: str,
    models: Mapping[str, Any],
    analyses: tuple[str, ...],
    dataset: str,
) -> ConfigDict:
    """Returns the config of an analysis.

    Args:
        title: Title of the report.
        models: Checkpoints by name; see `model`.
        analyses: Names from `ANALYSES`.
        dataset: Data set whose images are analysed.
    """
    config = settings.analysis()
    config.title = title
    config.data.name = dataset
    config.models = ConfigDict(dict(models))
    config.model_order = tuple(models)
    config.analyses = analyses

    # bfloat16's errors would hide the small changes that single neurons make.
    config.compute_dtype = "float32"
    config.teacher.mlp_weight = 1.0  # Checkpoints are analysed as they were saved.
    config.teacher.rho = 0.0
    config.information.seeds = (0, 1, 2)
    return config


def make_neurons(figure: int, strength: str, layer: int, dataset: str, *, spec: str) -> ConfigDict:
    """Returns the config of a figure of critical neurons, or of its mini version.

    Args:
        figure: Number of the figure in the paper.
        strength: Name of the pretraining; see `STRENGTHS`.
        layer: Index of the block, from 0; -1 is the top block.
        dataset: Data set whose images are analysed.
        spec: "" for the paper's setting, or "mini".
    """
    chosen = strengths(spec)
    if strength not in chosen:  # No ViT-Ti/16 with this pretraining is published.
        strength = "i1k"
    title, _ = chosen[strength]
    which = "the top" if layer == -1 else "a low"
    config = make(
        f"Figure {figure}{' (mini)' if spec else ''}: neurons of {which} MLP, {title}",
        models({strength: chosen[strength]}),
        ("criticality",),
        dataset,
    )
    config.criticality.layers = (layer,)
    if spec:
        config.criticality.examples = (0,) if layer == -1 else (64,)
        config.criticality.neurons = 4
        config.criticality.visualization.steps = 64
        config.criticality.visualization.learning_rate = 0.0125
    elif layer != -1:
        # Every neuron needs a forward pass of all blocks above its own. [choice]
        config.criticality.examples = (1000,)
    return config


def strengths(spec: str) -> Mapping[str, tuple[str, str]]:
    """Returns the pretrainings of the paper's setting, or of the mini version."""
    if spec not in ("", "mini"):
        raise ValueError(f'The option of a figure must be "mini" or left out; got {spec!r}.')
    return SMALL_STRENGTHS if spec else STRENGTHS

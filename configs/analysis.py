"""Analyses of checkpoints as they are: information, expertness, criticality.

    python -m remem_jax.main --config=configs/analysis.py:caltech101,init=augreg:Ti/16 \
        --workdir=analyses/mine
    python -m remem_jax.main --workdir=analyses/both \
        --config="configs/analysis.py:folder,init=Ti_16.npz|runs/mine/selected/remem_teacher.npz" \
        --config.data.path=my_images

A checkpoint is whatever `config.teacher.init` takes, also a teacher that a run has written. The
figures of the paper, configs/figures/, are made with what is below.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import settings
from remem_jax.weights import catalog

ANALYSES = ("information", "expertness", "criticality")
STRENGTHS = {  # Of pretraining, the weakest first: its title, and its checkpoint of a ViT-B/16.
    name: (title, catalog.TABLE_4[title])
    for name, title in (
        ("i1k", "ImageNet-1k"),
        ("i21k", "ImageNet-21K"),
        ("augreg", "ImageNet-21k (augreg)"),
    )
}
SMALL_STRENGTHS = {  # The same of a ViT-Ti/16, of which no other is published.
    "i1k": ("ImageNet-1k", "augreg-i1k:Ti/16"),
    "augreg": ("ImageNet-21k (augreg)", "augreg:Ti/16"),
}


def get_config(spec: str = "caltech101") -> ConfigDict:
    """Returns the analyses of some checkpoints.

    Args:
        spec: Name of the data set, then options: "flowers102,init=a.npz|b.npz,analyses=expertness".
            Several checkpoints, or analyses, are joined by |.
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
    titles = [_name(one) for one in inits]
    if len(set(titles)) < len(titles):  # Files of one name, in different folders.
        titles = inits
    chosen = {
        f"model_{i}": model(title, one)
        for i, (title, one) in enumerate(zip(titles, inits, strict=True))
    }
    return make(f"Analysis on {dataset}", chosen, tuple(options["analyses"].split("|")), dataset)


def _name(init: str) -> str:
    """A published name as it is, or that of a file."""
    return init if catalog.is_name(init) else pathlib.PurePath(init).stem


def model(title: str, init: str, **changes: Any) -> dict[str, Any]:
    """A checkpoint: what it is called, and its settings of `config.teacher`."""
    teacher = {"init": init, "variant": "", "gelu": "", "pruned_mlp": 0, "pruned_attention": 0}
    return {"title": title, "teacher": teacher | changes}


def models(strengths: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    """Checkpoints of different pretrainings."""
    return {name: model(title, init) for name, (title, init) in strengths.items()}


def make(
    title: str,
    models: Mapping[str, Any],
    analyses: tuple[str, ...],
    dataset: str,
) -> ConfigDict:
    """Returns an analysis.

    Args:
        title: Of its report.
        models: By name; see `model`.
        analyses: Of `ANALYSES`.
        dataset: Whose images are looked at.
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
    """Returns one of the figures of critical neurons, or its mini version.

    Args:
        figure: Its number.
        strength: Of the pretraining; see `STRENGTHS`.
        layer: Block, from 0, or from -1 down from the top.
        dataset: Whose images are looked at.
        spec: "" for the paper's setting, or "mini".
    """
    chosen = strengths(spec)
    if strength not in chosen:  # No ViT-Ti/16 of it is published.
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
        config.criticality.examples = (1000,)  # Blocks above run for every neuron [choice].
    return config


def strengths(spec: str) -> Mapping[str, tuple[str, str]]:
    """The checkpoints of the paper's setting, or of the mini version."""
    if spec not in ("", "mini"):
        raise ValueError(f"A figure is the paper's or, with :mini, a mini version; got {spec!r}.")
    return SMALL_STRENGTHS if spec else STRENGTHS

"""Reads and writes checkpoints of ViTs: AugReg, vit_jax, big_vision, timm, transformers.

Source: Steiner et al. 2021, https://arxiv.org/abs/2106.10270. The names are those of
github.com/google-research/vision_transformer.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from flax import traverse_util

from remem_jax import models
from remem_jax.checks import SettingError, one_of
from remem_jax.models import vit
from remem_jax.records import Params, Variables
from remem_jax.storage import files
from remem_jax.weights import (
    catalog,
    described,
    hub,
    hub_description,
    matching,
    names,
    npz,
    recorded,
    timm,
    timm_architectures,
    timm_names,
    transformers_names,
)
from remem_jax.weights.facts import UNKNOWN, Facts

FORMATS = ("vit_jax", "big_vision")


class Checkpoint(NamedTuple):
    """A ViT from a file, under our names.

    Attributes:
        arrays: float32 arrays by name.
        size: Size of the ViT, inferred from the shapes.
        options: Further fields of `vit.VisionTransformer` that the file or its description
            determines; see `described.options`.
        classes: Number of classes of its head; 0 if it has none.
        form: "vit_jax", "big_vision" or "timm".
        ignored: Names of the file's arrays that are not part of the ViT.
        source: Path of the file.
        layout: How timm names its arrays.
        architecture: timm's name of the network; "" if unknown.
    """

    arrays: Mapping[str, np.ndarray]
    size: vit.Size
    options: Mapping[str, Any]
    classes: int
    form: str
    ignored: tuple[str, ...]
    source: str
    layout: timm_names.Layout = timm_names.Layout()
    architecture: str = ""

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the images that the positions fit; about 224 if none are learned."""
        if names.POSITION not in self.arrays:
            return max(224 // self.size.pixels, 1) * self.size.pixels
        return described.grid(self.arrays, self.options) * self.size.pixels

    def make(self, *, classes: int, **options: Any) -> vit.VisionTransformer:
        """Makes its model, with other fields of `vit.VisionTransformer` as given.

        A [CLS] token of the file stays if another pool is given, because the patches attend to it.
        """
        fixed: dict[str, Any] = {**self.options, **options}
        if "cls" in self.arrays and fixed["pool"] not in ("cls", "cls_gap"):
            fixed.setdefault("class_token", True)
        return vit.make(variant=self.size, classes=classes, **fixed)


def read(
    path: str | os.PathLike[str],
    *,
    heads: int = 0,
    config: Mapping[str, Any] | None = None,
    facts: Facts | None = None,
) -> Checkpoint:
    """Reads a file of any supported format, which is recognised by the names in it.

    Args:
        path: An .npz of vit_jax or big_vision, followed by ":sub/tree" if the ViT is a part of a
            larger model; or a .safetensors of timm, whose names may have prefixes that
            `timm.unwrapped` removes, or of transformers (`transformers_names`).
        heads: Number of attention heads, which timm's files do not record; 0 for the number that a
            file of ours records (`recorded`), that of `facts`, or else 64 features per head.
        config: Contents of a config.json of timm or transformers; None for none, or for the one
            beside a file of transformers.
        facts: What the arrays do not determine; None for what the network's name says, which is in
            `config`, or else that of the file; in transformers, for what `config` says.

    Raises:
        SettingError: If the file is missing or broken, holds no ViT or one that is not determined,
            or has numbers that are not finite.
    """
    file, subtree = catalog.split_path(os.fspath(path))
    if file.suffix in (".safetensors", *timm.PICKLES):  # `timm.read` refuses pickles.
        return _read_timm(file, os.fspath(path), heads, facts, config or {})
    ignored: list[str] = []

    def choose(stored_names: list[str]) -> dict[str, str]:
        start = names.prefix(stored_names, subtree, os.fspath(file))
        chosen = {n: n.removeprefix(start) for n in stored_names if n.startswith(start)}
        if not start:  # A training state may be beside parameters at the root.
            others = ("opt/", "chrono/", "state/")
            chosen = {old: new for old, new in chosen.items() if not old.startswith(others)}
        ignored.extend(name for name in stored_names if name not in chosen)
        return chosen

    stored = npz.read(file, choose)
    matching.require_finite(stored, os.fspath(file))
    arrays, form = names.to_ours(stored)
    return describe(arrays, form=form, source=os.fspath(path), ignored=tuple(ignored))


def _read_timm(
    file: pathlib.Path,
    source: str,
    heads: int,
    facts: Facts | None,
    config: Mapping[str, Any],
) -> Checkpoint:
    """Reads a file with timm's names, or those of transformers; see `read`."""
    stored = timm.read(file)
    if transformers_names.is_transformers(stored):
        config = config or hub_description.read_json(file.with_name(hub.CONFIG))
        stored, of_config, ignored = transformers_names.to_timm(stored, config)
        facts = facts or of_config
    else:
        stored, ignored = timm.unwrapped(stored, os.fspath(file))
    matching.require_finite(stored, os.fspath(file))
    known = recorded.read(file)
    if facts is None:
        facts = timm_architectures.facts(timm_architectures.name_of(config, file.stem), config)
    facts = known.completed(facts)
    arrays = timm_names.from_timm(stored, heads=heads or facts.heads, pool_heads=facts.pool_heads)
    checkpoint = describe(arrays, form="timm", source=source, ignored=ignored, facts=facts)
    return checkpoint._replace(
        options={**checkpoint.options, **known.options}, layout=timm_names.layout_of(stored)
    )


def describe(
    arrays: Mapping[str, np.ndarray],
    *,
    form: str,
    source: str,
    ignored: tuple[str, ...] = (),
    facts: Facts = UNKNOWN,
) -> Checkpoint:
    """Infers the model from the names and shapes of its arrays, and from facts.

    Raises:
        SettingError: If an array that determines the size is missing or has no plausible shape, or
            neither arrays nor facts determine the network.
    """
    size = described.size(arrays, source)
    options = described.options(arrays, size, form=form, source=source, facts=facts)
    classes = 0
    if matching.HEAD[0] in arrays:
        classes = described.shape(arrays, matching.HEAD[0], 2, source)[1]
    return Checkpoint(
        arrays, size, options, classes, form, ignored, source, architecture=facts.architecture
    )


def make(
    path: str | os.PathLike[str],
    *,
    classes: int = 0,
    image_size: int | None = None,
    resize: str = "vit_jax",
    **options: Any,
) -> tuple[vit.VisionTransformer, Variables]:
    """Makes the model of a file, and loads its variables.

    Args:
        path: See `read`.
        classes: Number of classes of another task, for which the head is reset to zeros; 0 keeps
            the file's head.
        image_size: See `load`.
        resize: See `load`.
        **options: Fields of `vit.VisionTransformer`, such as `mlp_weight`.

    Raises:
        SettingError: See `load`; also if the file has no head and `classes` is 0.
    """
    checkpoint = read(path)
    if not classes and not checkpoint.classes:
        raise SettingError(f"{checkpoint.source} has no head: give the number of classes.")
    model = checkpoint.make(classes=classes or checkpoint.classes, **options)
    variables = into(
        checkpoint, model, image_size=image_size, reset_head=bool(classes), resize=resize
    )
    return model, variables


def load(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    image_size: int | None = None,
    reset_head: bool = False,
    resize: str = "vit_jax",
) -> Variables:
    """Loads the variables of a ViT from a file, and checks that all names and shapes match.

    A `pre_logits` layer, which the ImageNet-21k originals have, is dropped unless the model has
    one, as in vit_jax's fine-tuning. The used, resized, reset and ignored arrays are logged.

    Args:
        path: See `read`.
        model: A ViT from `models.make`.
        image_size: Side of the images, in pixels, to which the position embedding is resized; None
            keeps the file's.
        reset_head: Whether to reset the head to zeros, for another task. Otherwise the file's head
            is used and must fit.
        resize: Method of resizing positions, "vit_jax" or "timm"; see `matching.resize_positions`.

    Returns:
        Variables for `model.apply`.

    Raises:
        SettingError: If arrays are missing, unexpected or mis-shaped; the message lists them.
    """
    if not isinstance(model, vit.VisionTransformer):
        raise SettingError(f"AugReg files hold ViTs, not a {type(model).__name__}.")
    checkpoint = read(path, heads=model.size.heads)
    return into(checkpoint, model, image_size=image_size, reset_head=reset_head, resize=resize)


def into(
    checkpoint: Checkpoint,
    model: vit.VisionTransformer,
    *,
    image_size: int | None = None,
    reset_head: bool = False,
    resize: str = "vit_jax",
) -> Variables:
    """Returns the variables of a model from a checkpoint; see `load`."""
    params, report = _fitted(checkpoint, model, image_size, reset_head, resize)
    matching.log_loaded(checkpoint.source, checkpoint.form, report)
    if matching.HEAD[0] in report.used and not params[matching.HEAD[0]].any():
        logging.warning("The head of %s is all zeros, as published.", checkpoint.source)
    return {"params": traverse_util.unflatten_dict(params, sep="/")}


def require_whole(checkpoint: Checkpoint, *, image_size: int, resize: str = "vit_jax") -> None:
    """Raises `SettingError` unless a checkpoint has exactly the arrays of its ViT."""
    model = checkpoint.make(classes=1, representation=0)
    _fitted(checkpoint, model, image_size, True, resize)


def _fitted(
    checkpoint: Checkpoint,
    model: vit.VisionTransformer,
    image_size: int | None,
    reset_head: bool,
    resize: str,
) -> tuple[dict[str, np.ndarray], matching.Report]:
    """Returns the flat parameters of a model, and a report on the file's arrays."""
    shapes = names_and_shapes(model, image_size or checkpoint.image_size)
    for name in ("pool", "positions"):
        theirs, ours = checkpoint.options[name], getattr(model, name)
        if theirs != ours and not described.can_pool(ours, checkpoint.arrays):
            matching.require_match(
                checkpoint.arrays,
                shapes,
                checkpoint.source,
                f"its {name} is {theirs!r}, the model's {ours!r}: make the model by augreg.make, "
                f"or with {name}={theirs!r}.",
            )
    pruned = set()
    if model.pruned_mlp or model.pruned_attention:
        full = model.clone(pruned_mlp=0, pruned_attention=0)
        pruned = set(names_and_shapes(full, image_size or checkpoint.image_size)) - set(shapes)
    if model.pool != "map":
        pruned |= {name for name in checkpoint.arrays if name.startswith("MAPHead_0/")}
    arrays = {name: array for name, array in checkpoint.arrays.items() if name not in pruned}
    params, report = matching.fit(
        arrays,
        shapes,
        reset_head=reset_head,
        source=checkpoint.source,
        resize=resize,
        prefix=model.prefix if model.prefix_positions else 0,
    )
    ignored = (*report.ignored, *sorted(pruned), *checkpoint.ignored)
    return params, report._replace(ignored=ignored)


def names_and_shapes(model: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's parameters by slash-joined name."""
    flat: dict[Any, Any] = traverse_util.flatten_dict(
        dict(models.shapes(model, image_size)), sep="/"
    )
    return {str(name): tuple(leaf.shape) for name, leaf in flat.items()}


def save(
    path: str | os.PathLike[str],
    params: Params,
    *,
    form: str = "vit_jax",
    dtype: str = "float32",
) -> None:
    """Writes the parameters of a ViT to an .npz file, atomically.

    The file has no record of re-weighting or LoRA: fold a re-weighted ViT first
    (`weights.folding`), and merge a ViT tuned by LoRA.

    Args:
        path: An .npz file.
        params: Parameters of a ViT.
        form: Naming of the arrays: "vit_jax" (AugReg's) or "big_vision".
        dtype: Type of the arrays, "float32" or "float16".

    Raises:
        SettingError: If the code of that form has no such model.
    """
    one_of("form", form, FORMATS)
    flat = flatten(params)
    arrays = names.to_vit_jax(flat) if form == "vit_jax" else names.to_big_vision(flat)
    stored: dict[str, Any] = {name: np.asarray(array, dtype) for name, array in arrays.items()}
    with files.replacing(pathlib.Path(path)) as file:
        np.savez(file, **stored)


def form_of(params: Params) -> str:
    """Returns the form to save a ViT in: "vit_jax", or "big_vision" if vit_jax has no such ViT."""
    flat = flatten(params)
    return "vit_jax" if names.is_of_vit_jax(flat) else "big_vision"


def flatten(params: Params) -> dict[str, np.ndarray]:
    """Returns parameters as NumPy arrays by slash-joined name."""
    flat = traverse_util.flatten_dict(dict(params), sep="/")
    return {str(name): np.asarray(jax.device_get(leaf)) for name, leaf in flat.items()}

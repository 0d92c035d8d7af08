"""Applies models as plain functions, with the features that losses of students compare."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from remem_jax.models import encoder, projection, stages, vit
from remem_jax.records import (
    Apply,
    Key,
    Outputs,
    Params,
    StudentApply,
    TeacherApply,
    TrainApply,
    Variables,
)


def train_apply(model: nn.Module) -> TrainApply:
    """Returns the model in training mode, as a plain function."""
    return _train_apply(model, None)


def _train_apply(
    model: nn.Module, method: Callable[..., Any] | None, sown: Sequence[str] = (), **options: Any
) -> Callable[..., Any]:
    def apply(params: Params, statistics: Params, images: jax.Array, dropout_key: Key) -> Any:
        return model.apply(
            {"params": params, **statistics},
            images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=[*statistics, *sown],
            method=method,
            **options,
        )

    return apply


def evaluation_apply(model: nn.Module) -> Apply:
    """Returns the model in evaluation mode, as a plain function."""

    def apply(variables: Variables, images: jax.Array) -> Any:
        return model.apply(variables, images, train=False)

    return apply


def projected(
    model: nn.Module, targets: Sequence[projection.Target], image_size: int
) -> dict[str, tuple[int, int]]:
    """Returns the linear layers with which a student predicts targets; see `projection.add`."""
    sizes = [stage.channels for stage in stages.of_student(model, image_size)]
    return projection.channels(targets, sizes)


def student_apply(model: nn.Module, targets: Sequence[projection.Target] = ()) -> StudentApply:
    """Returns a student in training mode, with its predictions of the teacher's features.

    Args:
        model: The student.
        targets: The features to predict. The parameters then have a `projection`, with the layers
            of `projected`. Empty if the loss compares no features.
    """
    if not targets:
        plain = train_apply(model)

        def logits(*inputs: Any) -> tuple[Outputs, Params]:
            values, statistics = plain(*inputs)
            return Outputs(values), statistics

        return logits
    has_layers = any(target.field == "layers" for target in targets)
    is_vit = isinstance(model, vit.VisionTransformer)
    inner = _of_vit(model, has_layers) if is_vit else _of_cnn(model, has_layers)

    def apply(
        params: Params, statistics: Params, images: jax.Array, dropout_key: Key
    ) -> tuple[Outputs, Params]:
        plain_params = projection.without({"params": params})["params"]
        found, statistics = inner(plain_params, statistics, images, dropout_key)

        def predicted(target: projection.Target) -> Any:
            if target.field == "layers":
                return tuple(
                    projection.patches(projection.layer(params, f"layer_{i}"), maps, target.side)
                    for i, maps in enumerate(found.stages[-target.layers :], 1)
                )
            layer = projection.layer(params, target.field)
            if target.field == "patches":
                return projection.patches(layer, found.last, target.side)
            if found.token is not None:
                return projection.of_cls(layer, found.token)
            return projection.cls(layer, found.last)

        return Outputs(
            found.logits, **{each.field: predicted(each) for each in targets}
        ), statistics

    return apply


class _Inner(NamedTuple):
    """Features inside a student.

    Attributes:
        logits: Its logits.
        last: The maps, or patch tokens as maps, that its head takes.
        token: Its [CLS] token; None if it has none.
        stages: The maps, or patch tokens as maps, of its stages; empty if they are not needed.
    """

    logits: jax.Array
    last: jax.Array
    token: jax.Array | None
    stages: Sequence[jax.Array]


def _of_cnn(model: Any, has_layers: bool) -> Callable[..., tuple[_Inner, Params]]:
    def inner(
        params: Params, statistics: Params, images: jax.Array, dropout_key: Key
    ) -> tuple[_Inner, Params]:
        names = stages.of_student(model, images.shape[1]) if has_layers else ()
        apply = _train_apply(model, stages.logits_and_maps, stages=names)
        (logits, last, maps), statistics = apply(params, statistics, images, dropout_key)
        return _Inner(logits, last, None, maps), statistics

    return inner


def _of_vit(model: vit.VisionTransformer, has_layers: bool) -> Callable[..., tuple[_Inner, Params]]:
    taps = stages.blocks(model.size.depth) if has_layers else ()
    apply = _train_apply(model, _logits_and_tokens, sown=(encoder.TAPS,), taps=taps)

    def inner(*inputs: Any) -> tuple[_Inner, Params]:
        (logits, tokens, _), collections = apply(*inputs)
        maps = [projection.grid(patches) for patches in stages.of_taps(model, collections)]
        statistics = {name: collections[name] for name in collections if name != encoder.TAPS}
        token = tokens[:, 0] if model.has_cls else None
        return _Inner(logits, projection.grid(tokens[:, model.prefix :]), token, maps), statistics

    return inner


def teacher_apply(model: vit.VisionTransformer, fields: Collection[str] = ()) -> TeacherApply:
    """Returns a teacher in evaluation mode, with the features that a loss compares.

    Args:
        model: The teacher.
        fields: The feature fields of `Outputs` to return. "cls" needs a model with [CLS].

    Raises:
        ValueError: If `fields` has "cls" and the model has no [CLS] token.
    """
    plain = evaluation_apply(model)
    if "cls" in fields and not model.has_cls:
        raise ValueError(f"This ViT, which pools by {model.pool!r}, has no [CLS] token.")
    taps = stages.blocks(model.size.depth) if "layers" in fields else ()

    def apply(variables: Variables, images: jax.Array) -> Outputs:
        if not fields:
            return Outputs(plain(variables, images))
        outputs: Any = model.apply(
            variables,
            images,
            train=False,
            method=_logits_and_tokens,
            taps=taps,
            has_pooled="pooled" in fields,
            mutable=[encoder.TAPS],
        )
        (logits, tokens, pooled), sown = outputs
        features = {"patches": tokens[:, model.prefix :], "cls": tokens[:, 0], "pooled": pooled}
        if "layers" in fields:
            features["layers"] = stages.of_taps(model, sown)
        return Outputs(logits, **{field: features[field] for field in fields})

    return apply


def _logits_and_tokens(
    model: Any,
    images: jax.Array,
    *,
    train: bool,
    taps: Sequence[int],
    has_pooled: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns the logits of a ViT, the tokens that its head takes, and what that pools."""
    last = model.trunk(images, train=train, taps=taps)
    pooled = model.pooled(last) if has_pooled else None
    return model.head(last, train=train), last, pooled

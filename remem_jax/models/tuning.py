"""Fine-tuning methods: the parameters they add, which parameters train, and what is exported."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flax import traverse_util

from remem_jax.checks import above, one_of, require
from remem_jax.models import adapter, lora
from remem_jax.records import Key, Params

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class Tuning(NamedTuple):
    """A fine-tuning method.

    Attributes:
        method: Its name in `METHODS`.
        add: `(params, key) -> params` adds the method's parameters. At first they change no output.
        trains: Returns whether the parameter of a slash-joined name trains; the head always does.
        wrap: Wraps a function `(params or variables, ...)` that applies the model so that it uses
            the added parameters. The function must not be jitted yet.
        merge: Converts parameters (or variables) for the export: to a plain tree for LoRA; adapters
            keep their tree, which still needs `wrap`.
        mergeable: Whether `merge` returns a plain tree, with the names of the model only.
    """

    method: str
    add: Callable[[Params, Key], Params]
    trains: Callable[[str], bool]
    wrap: Wrap
    merge: Callable[[Params], Params]
    mergeable: bool


def make(method: str, **options: Any) -> Tuning:
    """Makes a fine-tuning method by name.

    Args:
        method: One of `METHODS`.
        **options: For "lora": `targets`, `rank` and `scale`; see `remem_jax.models.lora`. For
            "adapter_houlsby" and "adapter_pfeiffer": `reduction`, see `remem_jax.models.adapter`,
            and `norms`, whether LayerNorms train too. By default they do with Houlsby's, as in
            their paper (Section 2.1), and do not with Pfeiffer's.

    Raises:
        ValueError: If the method, an option or its value is unknown.
    """
    one_of("method", method, METHODS)
    known = [name for name in inspect.signature(METHODS[method]).parameters if name != "method"]
    for name in options:
        require(
            name in known,
            f"Tuning by {method!r} has no option {name!r}; known: {', '.join(known) or 'none'}.",
        )
    return METHODS[method](method, **options)


def split(params: Params, trains: Callable[[str], bool]) -> tuple[Params, Params]:
    """Splits parameters into those that train and the others; `join` undoes it."""
    flat = traverse_util.flatten_dict(params)
    trainable = {path: leaf for path, leaf in flat.items() if trains("/".join(path))}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trainable}
    return traverse_util.unflatten_dict(trainable), traverse_util.unflatten_dict(frozen)


def join(trainable: Params, frozen: Params) -> Params:
    """Joins two trees that share no parameter."""
    both = [traverse_util.flatten_dict(tree) for tree in (trainable, frozen)]
    shared = both[0].keys() & both[1].keys()
    require(not shared, f"Both trainable and frozen: {sorted('/'.join(p) for p in shared)[:10]}.")
    return traverse_util.unflatten_dict(both[0] | both[1])


def _full(method: str) -> Tuning:
    return Tuning(method, _nothing, lambda name: True, _same, _same, mergeable=True)


def _linear_probe(method: str) -> Tuning:
    def add(params: Params, key: Key) -> Params:
        del key
        require("head" in params, "method 'linear_probe' needs a model with a head.")
        return params

    return Tuning(method, add, in_head, _same, _same, mergeable=True)


def _lora(
    method: str,
    *,
    targets: Sequence[str] = ("query", "value"),
    rank: int = 32,
    scale: float = 32,
) -> Tuning:
    lora.check(targets, rank)
    above("scale", scale, 0)

    def trains(name: str) -> bool:
        return in_head(name) or name.split("/")[-1] in lora.LEAVES

    def wrap(apply: Callable[..., Any]) -> Callable[..., Any]:
        def merged(variables: Params, *args: Any, **kwargs: Any) -> Any:
            return apply(lora.merge(variables, scale=scale), *args, **kwargs)

        return merged

    add = functools.partial(lora.add, targets=targets, rank=rank)
    return Tuning(
        method, add, trains, wrap, functools.partial(lora.merge, scale=scale), mergeable=True
    )


def _adapter(method: str, *, reduction: int = 16, norms: bool) -> Tuning:
    placement = method.removeprefix("adapter_")
    adapter.check(placement, reduction)

    def trains(name: str) -> bool:
        modules = name.split("/")
        return in_head(name) or adapter.NAME in modules or (norms and any(map(_is_norm, modules)))

    add = functools.partial(adapter.add, placement=placement, reduction=reduction)
    return Tuning(method, add, trains, adapter.wrap, _same, mergeable=False)


def _nothing(params: Params, key: Key) -> Params:
    del key
    return params


def _same(value: Any) -> Any:
    return value


def in_head(name: str) -> bool:
    """Returns whether the parameter of a slash-joined name belongs to a ViT's head."""
    return name.startswith("head/")


def _is_norm(module: str) -> bool:
    return module.startswith("LayerNorm_") or module.endswith("norm") or module == "norm_pre"


METHODS: dict[str, Callable[..., Tuning]] = {
    "full": _full,
    "lora": _lora,
    "adapter_houlsby": functools.partial(_adapter, norms=True),
    "adapter_pfeiffer": functools.partial(_adapter, norms=False),
    "linear_probe": _linear_probe,
}

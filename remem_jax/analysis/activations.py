"""A ViT looked into: activations of its MLPs, its residual stream, and what its head sees.

Calls of the model's own modules are intercepted, so any ViT can be looked into: neither its
parameters nor its outputs change.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remem_jax.checks import require
from remem_jax.models import encoder, vit
from remem_jax.records import Batch, Params, Transform, Variables

_OUTPUT = ("MlpBlock_3", "Dense_1")  # Takes the activations of a block's MLP.


class Seen(NamedTuple):
    """What was seen of a batch; blocks are counted from 0, the bottom.

    Attributes:
        activations: Of the MLP's hidden layer, after its non-linearity; by block.
        streams: The tokens that leave a block; by block.
        embedding: What the head sees: of a model with such a pool, [CLS] after the last norm.
    """

    activations: Mapping[int, Float[Array, "batch token neuron"]]
    streams: Mapping[int, Float[Array, "batch token feature"]]
    embedding: Float[Array, "batch embedding"]


Look = Callable[[Variables, Array], Seen]
# (variables, batch) -> a tree of arrays whose first axis is that of the batch.
Reduction = Callable[[Variables, Batch], Any]


def require_layers(model: vit.VisionTransformer, layers: Sequence[int]) -> None:
    """Raises `ValueError` unless there are such blocks, and each has an MLP."""
    count = model.size.depth - model.pruned_mlp
    wrong = [layer for layer in layers if not 0 <= layer < count]
    require(not wrong, f"layers must be among the {count} that have an MLP, from 0; got {wrong}.")


def make_look(model: vit.VisionTransformer, layers: Sequence[int]) -> Look:
    """Builds the function that sees what a model makes of images.

    Args:
        model: Any ViT, in evaluation mode. Its blocks are unrolled, to tell them apart.
        layers: Blocks to look into, from 0.

    Returns:
        A pure function from variables and float images to what is seen. The caller wraps it in
        `jax.jit`, and before that in `tuning.Tuning.wrap` if the model is tuned.

    Raises:
        ValueError: If there is no such block, or it has no MLP.
    """
    require_layers(model, layers)
    unrolled = model.clone(scan=False, rematerialise="nothing")

    def look(variables: Variables, images: Array) -> Seen:
        activations: dict[int, Array] = {}
        streams: dict[int, Array] = {}
        # What is pruned is pruned from the top, so that the calls count the blocks.
        mlps, blocks = itertools.count(), itertools.count()

        def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            if context.method_name != "__call__":
                return out
            if context.module.path[-2:] == _OUTPUT and (layer := next(mlps)) in layers:
                activations[layer] = args[0]
            elif isinstance(context.module, encoder.EncoderBlock):
                layer = next(blocks)
                if layer in layers:
                    streams[layer] = out
            return out

        with nn.intercept_methods(note):
            embedding: Any = unrolled.apply(variables, images, method="pre_logits")
        return Seen(activations, streams, embedding)

    return look


def make_rest(
    model: vit.VisionTransformer, variables: Variables, layer: int
) -> Callable[[Float[Array, "batch token feature"]], Float[Array, "batch embedding"]]:
    """Builds the rest of a network: from the tokens that leave a block to what the head sees.

    Args:
        model: Any ViT, in evaluation mode, without adapters.
        variables: Of the model.
        layer: The block that the tokens leave.
    """
    above = model.size.depth - layer - 1
    rest = model.clone(
        size=model.size._replace(depth=above),
        positions="sincos2d",  # Has no parameters; the tokens have their positions already.
        pruned_mlp=min(model.pruned_mlp, above),
        pruned_attention=min(model.pruned_attention, above),
    )
    own = {**variables, "params": _above(variables["params"], layer, model.size.depth)}

    def embedding(tokens: Float[Array, "batch token feature"]) -> Float[Array, "batch embedding"]:
        def enter(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            return tokens if context.method_name == "_tokens" else call(*args, **kwargs)

        unseen = jnp.zeros((tokens.shape[0], model.size.pixels, model.size.pixels, 3))
        with nn.intercept_methods(enter):
            found: Any = rest.apply(own, unseen, method="pre_logits")
        return found

    return embedding


def _above(params: Params, layer: int, depth: int) -> Params:
    """Parameters of a ViT without its blocks up to `layer`; stacked, if they can be."""
    transformer = encoder.unstack(params)["Transformer"]
    names = {f"{encoder.STACK}_{i}": f"{encoder.STACK}_{i - layer - 1}" for i in range(depth)}
    kept = {name: tree for name, tree in transformer.items() if name not in names}
    blocks = [f"{encoder.STACK}_{i}" for i in range(layer + 1, depth)]
    kept |= {names[name]: transformer[name] for name in blocks if name in transformer}
    return encoder.stack({**params, "Transformer": kept})


def make_reduction(look: Look, transform: Transform, reduce: Callable[[Seen], Any]) -> Reduction:
    """Builds the function from variables and a batch to what is kept of it.

    Args:
        look: From `make_look`.
        transform: The transform of evaluation.
        reduce: From what is seen to a tree of arrays with a row for each example.

    Returns:
        A pure function. The caller wraps it in `jax.jit`.
    """

    def reduction(variables: Variables, batch: Batch) -> Any:
        return reduce(look(variables, transform(jax.random.key(0), batch.image)))

    return reduction


def rows(reduction: Reduction, variables: Variables, batches: Iterable[Batch]) -> Any:
    """What is kept of every example, as NumPy arrays; activations of one batch live at a time.

    Args:
        reduction: From `make_reduction`, jitted.
        variables: Of the model.
        batches: All examples once, such as `DataLoader.evaluation` gives; masked ones are left out.

    Returns:
        The tree of the reduction, with a row for each example, in their order.

    Raises:
        ValueError: If there are no batches.
    """
    found: list[list[np.ndarray]] = []
    structure = None
    for batch in batches:
        kept, mask = jax.device_get((reduction(variables, batch), batch.mask))
        leaves, structure = jax.tree.flatten(kept)
        found = found or [[] for _ in leaves]
        for parts, values in zip(found, leaves, strict=True):
            parts.append(values[mask])
    if structure is None:
        raise ValueError("There is nothing to look at: no batch came.")
    whole = []
    for parts in found:  # One after another, so that little is there twice.
        whole.append(np.concatenate(parts))
        parts.clear()
    return jax.tree.unflatten(structure, whole)

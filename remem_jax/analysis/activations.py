"""Captures a ViT's intermediate values: MLP activations, residual stream and the head's input.

Flax intercepts the calls of the model's modules, so this works for any ViT and changes neither its
parameters nor its outputs.
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

_OUTPUT = ("MlpBlock_3", "Dense_1")  # Its input is the MLP's hidden layer.


class Captured(NamedTuple):
    """Intermediate values of a batch, by block. Block 0 is the first.

    Attributes:
        hidden: The input of the MLP's last layer: the hidden layer after its non-linearity, its
            product with the gate and its norm, as far as there are any.
        tokens: The block's output.
        embedding: The head's input; with pool "cls", this is [CLS] after the last norm.
    """

    hidden: Mapping[int, Float[Array, "batch token neuron"]]
    tokens: Mapping[int, Float[Array, "batch token feature"]]
    embedding: Float[Array, "batch embedding"]


Capture = Callable[[Variables, Array], Captured]
# (variables, batch) -> a tree of arrays whose first axis is the batch axis.
Reduction = Callable[[Variables, Batch], Any]


def require_layers(model: vit.VisionTransformer, layers: Sequence[int]) -> None:
    """Raises `ValueError` unless all these blocks exist and have an MLP."""
    count = model.size.depth - model.pruned_mlp
    wrong = [layer for layer in layers if not 0 <= layer < count]
    require(
        not wrong, f"layers must be from 0 to {count - 1}, the blocks with an MLP; got {wrong}."
    )


def make_capture(model: vit.VisionTransformer, layers: Sequence[int]) -> Capture:
    """Builds the function that captures a model's intermediate values.

    Args:
        model: Any ViT, in evaluation mode. Its blocks are unrolled to distinguish them.
        layers: Indices of the blocks to capture, from 0.

    Returns:
        A pure function from variables and float images to the captured values. The caller wraps it
        in `jax.jit`, and before that in `tuning.Tuning.wrap` if the model has adapters or LoRA.

    Raises:
        ValueError: If there is no such block, or it has no MLP.
    """
    require_layers(model, layers)
    unrolled = model.clone(scan=False, rematerialise="nothing")

    def capture(variables: Variables, images: Array) -> Captured:
        hidden: dict[int, Array] = {}
        tokens: dict[int, Array] = {}
        # Pruning removes the last blocks, so the number of calls so far is the block's index.
        mlps, blocks = itertools.count(), itertools.count()

        def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            if context.method_name != "__call__":
                return out
            if context.module.path[-2:] == _OUTPUT and (layer := next(mlps)) in layers:
                hidden[layer] = args[0]
            elif isinstance(context.module, encoder.EncoderBlock):
                layer = next(blocks)
                if layer in layers:
                    tokens[layer] = out
            return out

        with nn.intercept_methods(intercept):
            embedding: Any = unrolled.apply(variables, images, method="pre_logits")
        return Captured(hidden, tokens, embedding)

    return capture


def make_rest(
    model: vit.VisionTransformer, variables: Variables, layer: int
) -> Callable[[Float[Array, "batch token feature"]], Float[Array, "batch embedding"]]:
    """Builds the function from a block's output to the head's input.

    Args:
        model: Any ViT, in evaluation mode, without adapters.
        variables: Variables of the model.
        layer: Index of the block, from 0.
    """
    above = model.size.depth - layer - 1
    rest = model.clone(
        size=model.size._replace(depth=above),
        positions="none",  # The tokens have their positions.
        norm_pre=False,
        pruned_mlp=min(model.pruned_mlp, above),
        pruned_attention=min(model.pruned_attention, above),
    )
    remaining = {**variables, "params": _above(variables["params"], layer, model.size.depth)}

    def embedding(tokens: Float[Array, "batch token feature"]) -> Float[Array, "batch embedding"]:
        def enter(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            return tokens if context.method_name == "_tokens" else call(*args, **kwargs)

        unused = jnp.zeros((tokens.shape[0], model.size.pixels, model.size.pixels, 3))
        with nn.intercept_methods(enter):
            outputs: Any = rest.apply(remaining, unused, method="pre_logits")
        return outputs

    return embedding


def _above(params: Params, layer: int, depth: int) -> Params:
    """Returns the parameters without the blocks up to `layer`, stacked if possible."""
    transformer = encoder.unstack(params)["Transformer"]
    names = {f"{encoder.STACK}_{i}": f"{encoder.STACK}_{i - layer - 1}" for i in range(depth)}
    kept = {name: tree for name, tree in transformer.items() if name not in names}
    blocks = [f"{encoder.STACK}_{i}" for i in range(layer + 1, depth)]
    kept |= {names[name]: transformer[name] for name in blocks if name in transformer}
    return encoder.stack({**params, "Transformer": kept})


def make_reduction(
    capture: Capture, transform: Transform, reduce: Callable[[Captured], Any]
) -> Reduction:
    """Builds the function that captures and reduces the intermediate values of a batch.

    Args:
        capture: The result of `make_capture`.
        transform: The evaluation transform.
        reduce: Maps captured values to a tree of arrays with one row per example.

    Returns:
        A pure function. The caller wraps it in `jax.jit`.
    """

    def reduction(variables: Variables, batch: Batch) -> Any:
        return reduce(capture(variables, transform(jax.random.key(0), batch.image)))

    return reduction


def rows(reduction: Reduction, variables: Variables, batches: Iterable[Batch]) -> Any:
    """Applies a reduction to all examples, holding the activations of one batch at a time.

    Args:
        reduction: The jitted result of `make_reduction`.
        variables: Variables of the model.
        batches: Each example once, as from `DataLoader.evaluation`. Masked examples are dropped.

    Returns:
        The tree of the reduction as NumPy arrays, with one row per example, in their order.

    Raises:
        ValueError: If there are no batches.
    """
    columns: list[list[np.ndarray]] = []
    structure = None
    for batch in batches:
        kept, mask = jax.device_get((reduction(variables, batch), batch.mask))
        leaves, structure = jax.tree.flatten(kept)
        columns = columns or [[] for _ in leaves]
        for column, values in zip(columns, leaves, strict=True):
            column.append(values[mask])
    if structure is None:
        raise ValueError("There are no batches.")
    whole = []
    for column in columns:  # One at a time, so that only one is in memory twice.
        whole.append(np.concatenate(column))
        column.clear()
    return jax.tree.unflatten(structure, whole)

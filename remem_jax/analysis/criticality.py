"""Measures how much the head's input depends on single MLP neurons (ReMem, Appendix C.2).

Source: Dong et al. 2025, https://arxiv.org/abs/2506.23041, Appendix C.2.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from remem_jax.analysis import activations
from remem_jax.checks import at_least, require
from remem_jax.models import adapter, encoder, vit
from remem_jax.records import Batch, Transform, Variables

# (variables, batch) -> relative change of each example's embedding by each neuron.
Influence = Callable[[Variables, Batch], Float[Array, "batch neuron"]]


class Criticality(NamedTuple):
    """The examples whose embeddings each neuron changes most.

    Attributes:
        value: Relative changes of the embedding when the neuron is set to zero, in descending
            order. The first is the neuron's criticality. -1 if there were fewer examples.
        example: Index of the example of each value; among equal values, the first example.
        examples: Number of examples so far.
    """

    value: Float[np.ndarray, "rank neuron"]
    example: Int[np.ndarray, "rank neuron"]
    examples: int


def make_influence(
    model: vit.VisionTransformer, transform: Transform, *, layer: int, chunk: int
) -> Influence:
    """Builds the function that returns ||c - c(-j)|| / ||c|| for each example and neuron j.

    c is the head's input: [CLS] after the last norm, or the output of another pool. c(-j) is the
    same with the neuron's activation set to zero at all tokens. This subtracts the rank-one product
    mlp_weight * activation * output weights from the block's output. From there the rest of the
    network runs, for a chunk of neurons at a time. If no later block has attention, only the [CLS]
    token is needed. Everything is computed in float32, because rounding to bfloat16 is larger than
    the influence of one neuron.

    Args:
        model: The ViT, in evaluation mode, without adapters.
        transform: The evaluation transform.
        layer: Index of the block with the neurons, from 0.
        chunk: Number of neurons at a time. Memory grows with batch size times chunk, the number of
            images that pass through the later blocks at once.

    Returns:
        A pure function. The caller wraps it in `jax.jit`, and before that in `tuning.Tuning.wrap`
        if the model is tuned by LoRA.

    Raises:
        ValueError: If there is no such block, it has no MLP, or `chunk` is below 1. The returned
            function raises it if the parameters contain adapters.
    """
    at_least("chunk", chunk, 1)
    model = model.clone(dtype="float32")
    capture = activations.make_capture(model, [layer])
    attending = model.size.depth - model.pruned_attention
    only_cls = model.pool == "cls" and layer + 1 >= attending

    def influence(variables: Variables, batch: Batch) -> Float[Array, "batch neuron"]:
        # By default, GPUs multiply float32 matrices in lower precision.
        with jax.default_matmul_precision("float32"):
            kernel = model.mlp_weight * _output_kernel(variables, layer)
            captured = capture(variables, transform(jax.random.key(0), batch.image))
            tokens, hidden = captured.tokens[layer], captured.hidden[layer]
            if only_cls:
                tokens, hidden = tokens[:, :1], hidden[:, :1]
            rest = activations.make_rest(model, variables, layer)
            return _changes(rest, tokens, hidden, kernel, chunk)

    return influence


def _output_kernel(variables: Variables, layer: int) -> Float[Array, "neuron feature"]:
    """Returns the MLP's output weights, multiplied by its LayerScale if it has one."""
    block = encoder.unstack(variables["params"])["Transformer"][f"{encoder.STACK}_{layer}"]
    mlp = block["MlpBlock_3"]
    require(adapter.NAME not in mlp, "Criticality is not implemented for a ViT with adapters.")
    kernel = jnp.asarray(mlp["Dense_1"]["kernel"])
    return kernel * block["gamma_2"][None] if "gamma_2" in block else kernel


def _changes(
    rest: Callable[[Array], Array],
    tokens: Float[Array, "batch token feature"],
    hidden: Float[Array, "batch token neuron"],
    kernel: Float[Array, "neuron feature"],
    chunk: int,
) -> Float[Array, "batch neuron"]:
    """Returns the relative changes of the embedding when one neuron's output is subtracted."""
    embedding = rest(tokens)
    neurons, fill = len(kernel), -len(kernel) % chunk

    def chunked(values: Float[Array, "neuron ..."]) -> Float[Array, "chunks chunk ..."]:
        filled = jnp.pad(values, [(0, fill)] + [(0, 0)] * (values.ndim - 1))
        return filled.reshape(-1, chunk, *values.shape[1:])

    def change(inputs: tuple[Array, Array]) -> Float[Array, "chunk batch"]:
        hidden, kernel = inputs
        removed = hidden[..., None] * kernel[:, None, None]
        changed = rest((tokens[None] - removed).reshape(-1, *tokens.shape[1:]))
        difference = changed.reshape(chunk, *embedding.shape) - embedding[None]
        return jnp.linalg.norm(difference, axis=-1)

    chunks = (chunked(jnp.moveaxis(hidden, -1, 0)), chunked(kernel))
    changes = jax.lax.map(change, chunks).reshape(-1, len(tokens))[:neurons]
    return changes.T / jnp.linalg.norm(embedding, axis=-1, keepdims=True)


def empty(neurons: int, *, ranks: int) -> Criticality:
    """Returns the criticality of no examples.

    Args:
        neurons: Number of neurons in the block.
        ranks: Number of examples to keep per neuron.
    """
    at_least("ranks", ranks, 1)
    shape = ranks, neurons
    return Criticality(np.full(shape, -1.0, np.float32), np.full(shape, -1), 0)


def add(
    before: Criticality,
    changes: Float[np.ndarray, "batch neuron"],
    mask: Bool[np.ndarray, " batch"],
) -> Criticality:
    """Adds a batch to a criticality.

    Args:
        before: The criticality of the earlier batches.
        changes: The output of an `Influence`.
        mask: False for examples that only pad the batch.

    Raises:
        ValueError: If an influence is not finite.
    """
    changes = changes[mask]
    require(bool(np.all(np.isfinite(changes))), "The model's embeddings are NaN or zero.")
    indices = np.arange(len(changes))[:, None] + before.examples
    values = np.concatenate([before.value, changes])
    examples = np.concatenate([before.example, np.broadcast_to(indices, changes.shape)])
    order = np.argsort(-values, axis=0, kind="stable")[: len(before.value)]
    return Criticality(
        np.take_along_axis(values, order, axis=0),
        np.take_along_axis(examples, order, axis=0),
        before.examples + len(changes),
    )


def criticality(
    influence: Influence,
    variables: Variables,
    batches: Iterable[Batch],
    *,
    ranks: int,
    before: Criticality | None = None,
    on_batch: Callable[[Criticality], None] = lambda result: None,
) -> Criticality:
    """Computes the criticality of all neurons of a block.

    Args:
        influence: The jitted result of `make_influence`.
        variables: Variables of the model.
        batches: Each example once, as from `DataLoader.evaluation`. Masked examples are ignored.
        ranks: Number of examples to keep per neuron.
        before: The criticality of earlier examples, which are not in `batches`.
        on_batch: Called after every batch with the criticality so far.

    Raises:
        ValueError: If there are no examples, or an influence is not finite.
    """
    current = before
    for batch in batches:
        changes, mask = jax.device_get((influence(variables, batch), batch.mask))
        current = add(current or empty(changes.shape[1], ranks=ranks), changes, mask)
        on_batch(current)
    if current is None or current.examples == 0:
        raise ValueError("The batches contain no examples.")
    return current

"""How much what the head sees depends on single neurons of an MLP (ReMem, Appendix C.2).

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
    """The examples whose embeddings each neuron changes most; the first of them is critical.

    Attributes:
        value: Relative changes of an embedding when the neuron is set to zero, largest first; the
            first is the neuron's criticality. -1 where there were fewer examples.
        example: Which example's that is, by its place among all; the first of equal ones.
        examples: How many there were.
    """

    value: Float[np.ndarray, "rank neuron"]
    example: Int[np.ndarray, "rank neuron"]
    examples: int


def make_influence(
    model: vit.VisionTransformer, transform: Transform, *, layer: int, chunk: int
) -> Influence:
    """Builds the function that gives ||c - c(-j)|| / ||c|| for each example and neuron j.

    c is what the head sees: [CLS] after the last norm, or what stands in for it in a model of
    another pool. c(-j) is the same with the neuron's activation set to zero at all tokens. This
    takes mlp_weight * activation * output weights from the tokens that leave the block, rank one;
    from there the rest of the network runs, for a chunk of neurons at a time. Where no block
    above attends, the rest of [CLS] is a norm of one token. All is computed in float32, whatever
    the model's type: the influence of one neuron is less than what bfloat16 rounds.

    Args:
        model: The ViT, in evaluation mode, without adapters.
        transform: The transform of evaluation.
        layer: Block whose MLP has the neurons, from 0.
        chunk: Neurons at a time. Memory grows with the batch times this: the blocks above see as
            many images at once.

    Returns:
        A pure function. The caller wraps it in `jax.jit`, and before that in `tuning.Tuning.wrap`
        if the model is tuned by LoRA.

    Raises:
        ValueError: If there is no such block, it has no MLP, or `chunk` is below 1; from the
            function, if the parameters hold adapters.
    """
    at_least("chunk", chunk, 1)
    model = model.clone(dtype="float32")
    look = activations.make_look(model, [layer])
    attending = model.size.depth - model.pruned_attention
    only_cls = model.pool == "cls" and layer + 1 >= attending

    def influence(variables: Variables, batch: Batch) -> Float[Array, "batch neuron"]:
        # By default a GPU multiplies float32 with the digits of half of it.
        with jax.default_matmul_precision("float32"):
            kernel = _output_kernel(variables, layer)
            seen = look(variables, transform(jax.random.key(0), batch.image))
            stream, hidden = seen.streams[layer], seen.activations[layer]
            if only_cls:
                stream, hidden = stream[:, :1], hidden[:, :1]
            rest = activations.make_rest(model, variables, layer)
            return _changes(rest, stream, hidden, model.mlp_weight * kernel, chunk)

    return influence


def _output_kernel(variables: Variables, layer: int) -> Float[Array, "neuron feature"]:
    blocks = encoder.unstack(variables["params"])["Transformer"]
    mlp = blocks[f"{encoder.STACK}_{layer}"]["MlpBlock_3"]
    require(adapter.NAME not in mlp, "Criticality is not defined here for a ViT with adapters.")
    return jnp.asarray(mlp["Dense_1"]["kernel"])


def _changes(
    rest: Callable[[Array], Array],
    stream: Float[Array, "batch token feature"],
    hidden: Float[Array, "batch token neuron"],
    kernel: Float[Array, "neuron feature"],
    chunk: int,
) -> Float[Array, "batch neuron"]:
    """Relative change of the rest's result when one neuron's part is taken from the stream."""
    embedding = rest(stream)
    neurons, fill = len(kernel), -len(kernel) % chunk

    def chunked(values: Float[Array, "neuron ..."]) -> Float[Array, "part chunk ..."]:
        filled = jnp.pad(values, [(0, fill)] + [(0, 0)] * (values.ndim - 1))
        return filled.reshape(-1, chunk, *values.shape[1:])

    def change(part: tuple[Array, Array]) -> Float[Array, "chunk batch"]:
        own_hidden, own_kernel = part
        removed = own_hidden[..., None] * own_kernel[:, None, None]
        changed = rest((stream[None] - removed).reshape(-1, *stream.shape[1:]))
        difference = changed.reshape(chunk, *embedding.shape) - embedding[None]
        return jnp.linalg.norm(difference, axis=-1)

    parts = (chunked(jnp.moveaxis(hidden, -1, 0)), chunked(kernel))
    changes = jax.lax.map(change, parts).reshape(-1, len(stream))[:neurons]
    return changes.T / jnp.linalg.norm(embedding, axis=-1, keepdims=True)


def none_seen(neurons: int, *, ranks: int) -> Criticality:
    """The criticality before any example was seen.

    Args:
        neurons: Of the block.
        ranks: How many examples are kept of each neuron.
    """
    at_least("ranks", ranks, 1)
    shape = ranks, neurons
    return Criticality(np.full(shape, -1.0, np.float32), np.full(shape, -1), 0)


def add(
    before: Criticality,
    changes: Float[np.ndarray, "batch neuron"],
    mask: Bool[np.ndarray, " batch"],
) -> Criticality:
    """The criticality with a further batch.

    Args:
        before: Of the batches before.
        changes: What an `Influence` found.
        mask: False where an example only fills up the batch.

    Raises:
        ValueError: If an influence is not finite.
    """
    changes = changes[mask]
    require(bool(np.all(np.isfinite(changes))), "The model gives embeddings of NaN or zero.")
    places = np.arange(len(changes))[:, None] + before.examples
    values = np.concatenate([before.value, changes])
    examples = np.concatenate([before.example, np.broadcast_to(places, changes.shape)])
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
    seen: Callable[[Criticality], None] = lambda now: None,
) -> Criticality:
    """The influence of each neuron of a block on the examples that it changes most.

    Args:
        influence: From `make_influence`, jitted.
        variables: Of the model.
        batches: All examples once, such as `DataLoader.evaluation` gives; masked ones do not count.
        ranks: How many examples are kept of each neuron.
        before: What was found of examples that are not among these; the first of `batches`
            comes after them.
        seen: Called after every batch with what was found so far.

    Raises:
        ValueError: If there are no examples, or an influence is not finite.
    """
    found = before
    for batch in batches:
        changes, mask = jax.device_get((influence(variables, batch), batch.mask))
        found = add(found or none_seen(changes.shape[1], ranks=ranks), changes, mask)
        seen(found)
    if found is None or found.examples == 0:
        raise ValueError("There is nothing to look at: no batch holds an example.")
    return found

"""The blocks of a Vision Transformer, re-weighted, under the parameter names of the AugReg files.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; the re-weighting is Eq. 2 of
ReMem, Dong et al. 2025, https://arxiv.org/abs/2506.23041.
"""

import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remem_jax.models.attention import Attention
from remem_jax.models.rematerialisation import checkpointed, kept
from remem_jax.records import Params

STACK = "encoderblock"  # A block is called so with its number; without, all on a leading axis.


class Block(NamedTuple):
    """What the blocks of one encoder share.

    Attributes:
        heads: Number of attention heads; divides the features.
        hidden: Width of the MLP's hidden layer.
        mlp_weight: Weight of the MLP's output (alpha).
        attention_weight: Weight of the attention's output (beta).
        residual: "two_minus" weighs the residual by 2 - alpha (or beta), "plain" by 1.
        exact_gelu: True for the GELU by erf, as timm has it; AugReg was trained with tanh.
        dropout: Share of the units dropped in training.
        dtype: Type of the computation; parameters are float32.
    """

    heads: int
    hidden: int
    mlp_weight: float = 1.0
    attention_weight: float = 1.0
    residual: str = "two_minus"
    exact_gelu: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between them.

    Attributes:
        hidden: Width of the hidden layer.
        exact_gelu: See `Block`.
        dropout: Share of the units dropped after each layer in training.
        dtype: Type of the computation.
    """

    hidden: int
    exact_gelu: bool
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        hidden = kept("hidden", nn.Dense(self.hidden, dtype=self.dtype, name="Dense_0")(tokens))
        hidden = drop(nn.gelu(hidden, approximate=not self.exact_gelu))
        return drop(nn.Dense(tokens.shape[-1], dtype=self.dtype, name="Dense_1")(hidden))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each weighed against its residual (ReMem, Eq. 2).

    A pruned sub-block has no parameters and leaves its residual alone.

    Attributes:
        shared: What all blocks have in common.
        attends: False where the attention is pruned.
        has_mlp: False where the MLP is pruned.
    """

    shared: Block
    attends: bool = True
    has_mlp: bool = True

    def add(
        self,
        weight: float,
        update: Float[Array, "batch token feature"],
        tokens: Float[Array, "batch token feature"],
    ) -> Float[Array, "batch token feature"]:
        """Weighted sum of a sub-block's output and its residual, rounded once; exact at weight 1.

        In bfloat16 the weights 0.8 and 1.2 would be 0.80078 and 1.20313, and the checkpoint with
        folded weights another network. So weights and sum are float32.
        """
        kept = (2 - weight) if self.shared.residual == "two_minus" else 1.0
        total = weight * update.astype(jnp.float32) + kept * tokens.astype(jnp.float32)
        return total.astype(tokens.dtype)

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        # The numbers in the names count all submodules, as Flax did before Linen.
        shared = self.shared
        if self.attends:
            normed = nn.LayerNorm(dtype=shared.dtype, name="LayerNorm_0")(tokens)
            attention = Attention(shared.heads, shared.dtype, name="MultiHeadDotProductAttention_1")
            update = attention(normed, normed)
            update = nn.Dropout(shared.dropout, deterministic=not train)(update)
            tokens = kept("residual", self.add(shared.attention_weight, update, tokens))
        if self.has_mlp:
            normed = nn.LayerNorm(dtype=shared.dtype, name="LayerNorm_2")(tokens)
            mlp = MlpBlock(
                shared.hidden, shared.exact_gelu, shared.dropout, shared.dtype, name="MlpBlock_3"
            )
            tokens = self.add(shared.mlp_weight, mlp(normed, train=train), tokens)
        return tokens


class PositionEmbedding(nn.Module):
    """Adds one learned vector per token; with a [CLS] token, the first is its."""

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch token feature"]:
        shape = (1, *tokens.shape[1:])
        positions = self.param("pos_embedding", nn.initializers.normal(0.02), shape)
        return (tokens.astype(jnp.float32) + positions).astype(tokens.dtype)


class Encoder(nn.Module):
    """Position embedding, blocks, last norm.

    The parameters are one tree per block, as the files have them. Scanned, blocks run by
    `lax.scan` over their stacked parameters: it compiles several times faster than a Python loop
    and, on a CPU, trains about twice as fast.

    Attributes:
        depth: Number of blocks.
        block: What the blocks share.
        learned_positions: Whether position embeddings are parameters, added here.
        pruned_mlp: Number of blocks, from the top, without their MLP.
        pruned_attention: The same for the attention.
        rematerialise: What the backward pass computes again; see `rematerialisation.RECOMPUTED`.
        scan: Scan over the blocks, or unroll them.
    """

    depth: int
    block: Block
    learned_positions: bool
    pruned_mlp: int
    pruned_attention: int
    rematerialise: str
    scan: bool

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        if self.learned_positions:
            tokens = PositionEmbedding(name="posembed_input")(tokens)
        tokens = nn.Dropout(self.block.dropout, deterministic=not train)(tokens)
        if self.is_initializing():
            for i in range(self.depth):
                block = EncoderBlock(self.block, *self._parts(i), name=f"{STACK}_{i}")
                tokens = block(tokens, train=train)
        else:
            tokens = self._apply(tokens, train=train)
        return nn.LayerNorm(dtype=self.block.dtype, name="encoder_norm")(tokens)

    def _parts(self, i: int) -> tuple[bool, bool]:
        """Whether block i attends, and has an MLP."""
        return i < self.depth - self.pruned_attention, i < self.depth - self.pruned_mlp

    def _apply(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        params = self.variables["params"]
        drops = train and self.block.dropout > 0
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if drops else None
        # Blocks that have the same parts are one scan; pruning makes at most three of them.
        for parts, group in itertools.groupby(range(self.depth), self._parts):
            indices = list(group)
            if not any(parts):
                continue  # Nothing is left of these blocks but their residuals.
            block = EncoderBlock(self.block, *parts, parent=None)

            def step(carry: Array, layer: Any, block: EncoderBlock = block) -> tuple[Any, None]:
                layer_params, key = layer
                rngs = {} if key is None else {"dropout": key}
                return block.apply({"params": layer_params}, carry, train=train, rngs=rngs), None

            layers = _layers(params, indices, stacked=self.scan)
            own_keys = None if keys is None else keys[indices[0] : indices[-1] + 1]
            tokens = self._run(step, tokens, layers, own_keys)
        return tokens

    def _run(self, step: Any, tokens: Any, layers: Any, keys: Any) -> Any:
        """Applies a step to one layer after another."""
        step = checkpointed(step, self.rematerialise, in_loop=self.scan)
        if self.scan:
            return jax.lax.scan(step, tokens, (layers, keys))[0]
        for i, layer in enumerate(layers):
            tokens, _ = step(tokens, (layer, None if keys is None else keys[i]))
        return tokens


def stack(params: Params) -> Params:
    """Parameters of a ViT with those of its blocks on a leading axis, as it trains fastest.

    The model takes either form. Stacked, a training step compiles in half of the time, and need
    not stack them itself. What can not be stacked, because blocks differ in their parts, is
    returned as it is. Arrays of NumPy stay on the host.
    """
    encoder = params["Transformer"]
    names = _block_names(encoder)
    structures = {jax.tree.structure(encoder[name]) for name in names}
    if len(structures) != 1:
        return params
    blocks = jax.tree.map(_stacked, *(encoder[name] for name in names))
    others = {name: encoder[name] for name in encoder if name not in names}
    return {**params, "Transformer": {**others, STACK: blocks}}


def _stacked(*leaves: Any) -> Any:
    on_host = all(isinstance(leaf, np.ndarray) for leaf in leaves)
    return np.stack(leaves) if on_host else jnp.stack(leaves)


def unstack(params: Params) -> Params:
    """The inverse of `stack`; what is not stacked is returned as it is."""
    encoder = params["Transformer"]
    if STACK not in encoder:
        return params
    blocks, depth = encoder[STACK], len(jax.tree.leaves(encoder[STACK])[0])
    others = {name: encoder[name] for name in encoder if name != STACK}
    each = {f"{STACK}_{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(depth)}
    return {**params, "Transformer": {**others, **each}}


def _block_names(encoder: Params) -> list[str]:
    found = [name for name in encoder if name.startswith(f"{STACK}_")]
    return sorted(found, key=lambda name: int(name.rpartition("_")[2]))


def _layers(params: Params, indices: list[int], *, stacked: bool) -> Any:
    """Parameters of some blocks, one after another or on a leading axis."""
    if STACK in params:
        found = jax.tree.map(lambda x: x[indices[0] : indices[-1] + 1], params[STACK])
        return found if stacked else [jax.tree.map(lambda x, i=i: x[i], found) for i in indices]
    layers = [params[f"{STACK}_{i}"] for i in indices]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) if stacked else layers


class MapHead(nn.Module):
    """Multi-head attention pooling: one learned query attends to all tokens.

    Source: Zhai et al. 2022, https://arxiv.org/abs/2106.04560; names are big_vision's.

    Attributes:
        shared: Heads, hidden width, GELU and type; its weights are not used.
    """

    shared: Block

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch feature"]:
        shared, init = self.shared, nn.initializers.xavier_uniform()
        probe = self.param("probe", init, (1, 1, tokens.shape[-1]))
        queries = jnp.broadcast_to(
            probe.astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[-1])
        )
        attention = Attention(
            shared.heads, shared.dtype, init, name="MultiHeadDotProductAttention_0"
        )
        pooled = attention(queries, tokens)
        normed = nn.LayerNorm(dtype=shared.dtype, name="LayerNorm_0")(pooled)
        mlp = MlpBlock(shared.hidden, shared.exact_gelu, 0.0, shared.dtype, name="MlpBlock_0")
        return (pooled + mlp(normed, train=False))[:, 0]

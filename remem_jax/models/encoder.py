"""The blocks of a Vision Transformer, re-weighted, under the parameter names of the AugReg files.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; the re-weighting is Eq. 2 of
ReMem, Dong et al. 2025, https://arxiv.org/abs/2506.23041.
"""

import functools
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

LECUN = nn.initializers.lecun_normal()  # Flax's default.
STACK = "encoderblock"  # The stacked blocks; a single block has its number appended.


class Block(NamedTuple):
    """The options that the blocks of one encoder share.

    Attributes:
        heads: Number of attention heads; divides the features.
        hidden: Width of the MLP's hidden layer.
        mlp_weight: Weight of the MLP's output (alpha).
        attention_weight: Weight of the attention's output (beta).
        residual: "two_minus" weights the residual by 2 - alpha (or beta), "plain" by 1.
        exact_gelu: True for the GELU by erf, as in timm. AugReg was trained with tanh.
        dropout: Share of the units dropped in training.
        dtype: Type of the computation; parameters are float32.
        drop_path: Share of the images for which a sub-block of the last block is left out in
            training.
        kernel_init: Initialiser of all kernels.
    """

    heads: int
    hidden: int
    mlp_weight: float = 1.0
    attention_weight: float = 1.0
    residual: str = "two_minus"
    exact_gelu: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32
    drop_path: float = 0.0
    kernel_init: nn.initializers.Initializer = LECUN


class MlpBlock(nn.Module):
    """Two dense layers with a GELU between them.

    Attributes:
        hidden: Width of the hidden layer.
        exact_gelu: See `Block`.
        dropout: Share of the units dropped after each layer in training.
        dtype: Type of the computation.
        kernel_init: Initialiser of the kernels.
    """

    hidden: int
    exact_gelu: bool
    dropout: float
    dtype: Any
    kernel_init: nn.initializers.Initializer = LECUN

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        drop = nn.Dropout(self.dropout, deterministic=not train)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        hidden = kept("hidden", dense(self.hidden, name="Dense_0")(tokens))
        hidden = drop(nn.gelu(hidden, approximate=not self.exact_gelu))
        return drop(dense(tokens.shape[-1], name="Dense_1")(hidden))


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each weighted against its residual (ReMem, Eq. 2).

    A pruned sub-block has no parameters, and its residual has the weight 1.

    Attributes:
        shared: The options that all blocks share.
        has_attention: False if the attention is pruned.
        has_mlp: False if the MLP is pruned.
    """

    shared: Block
    has_attention: bool = True
    has_mlp: bool = True

    def add(
        self,
        weight: float,
        update: Float[Array, "batch token feature"],
        tokens: Float[Array, "batch token feature"],
    ) -> Float[Array, "batch token feature"]:
        """Returns the weighted sum of a sub-block's output and its residual, rounded once.

        Weights and sum are float32. In bfloat16 the weights 0.8 and 1.2 would be 0.80078 and
        1.20313, and the checkpoint with folded weights would be a different network.
        """
        residual_weight = (2 - weight) if self.shared.residual == "two_minus" else 1.0
        total = weight * update.astype(jnp.float32) + residual_weight * tokens.astype(jnp.float32)
        return total.astype(tokens.dtype)

    def drop_path(
        self, update: Float[Array, "batch token feature"], rate: Float[Array, ""]
    ) -> Float[Array, "batch token feature"]:
        """Replaces the update by zeros for a share of the images, and scales up the others."""
        shape = (update.shape[0], 1, 1)
        is_kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        factor = (is_kept.astype(jnp.float32) / (1 - rate)).astype(update.dtype)
        return update * jnp.broadcast_to(factor, update.shape)

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "batch token feature"],
        *,
        train: bool,
        drop_path: Float[Array, ""] | None = None,
    ) -> Float[Array, "batch token feature"]:
        """Applies the block.

        Args:
            tokens: The tokens.
            train: Whether units are dropped.
            drop_path: Share of the images for which each sub-block is left out; None for no image.
        """
        # The names count all submodules, as Flax did before Linen.
        shared = self.shared
        dtype, init = shared.dtype, shared.kernel_init
        if self.has_attention:
            normed = nn.LayerNorm(dtype=dtype, name="LayerNorm_0")(tokens)
            attention = Attention(shared.heads, dtype, init, name="MultiHeadDotProductAttention_1")
            update = attention(normed, normed)
            update = nn.Dropout(shared.dropout, deterministic=not train)(update)
            update = update if drop_path is None else self.drop_path(update, drop_path)
            tokens = kept("residual", self.add(shared.attention_weight, update, tokens))
        if self.has_mlp:
            normed = nn.LayerNorm(dtype=dtype, name="LayerNorm_2")(tokens)
            mlp = MlpBlock(
                shared.hidden, shared.exact_gelu, shared.dropout, dtype, init, name="MlpBlock_3"
            )
            update = mlp(normed, train=train)
            update = update if drop_path is None else self.drop_path(update, drop_path)
            tokens = self.add(shared.mlp_weight, update, tokens)
        return tokens


class PositionEmbedding(nn.Module):
    """Adds one learned vector per token; the first is that of [CLS], if there is one."""

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch token feature"]:
        shape = (1, *tokens.shape[1:])
        positions = self.param("pos_embedding", nn.initializers.normal(0.02), shape)
        return (tokens.astype(jnp.float32) + positions).astype(tokens.dtype)


class Encoder(nn.Module):
    """Position embedding, blocks, last norm.

    The parameters are one tree per block, as in the files. `scan` runs the blocks by `lax.scan`
    over their stacked parameters: this compiles several times faster than a Python loop and trains
    about twice as fast on a CPU.

    Attributes:
        depth: Number of blocks.
        block: The options that the blocks share.
        learned_positions: Whether position embeddings are parameters, which are added here.
        pruned_mlp: Number of blocks without their MLP, from the last block down.
        pruned_attention: Number of blocks without their attention, from the last block down.
        rematerialise: One of `rematerialisation.RECOMPUTED`.
        scan: Whether the blocks run by `lax.scan` or unrolled.
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
                block = EncoderBlock(self.block, *self._sub_blocks(i), name=f"{STACK}_{i}")
                tokens = block(tokens, train=train)
        else:
            tokens = self._apply(tokens, train=train)
        return nn.LayerNorm(dtype=self.block.dtype, name="encoder_norm")(tokens)

    def _sub_blocks(self, i: int) -> tuple[bool, bool]:
        """Returns whether block i has its attention, and whether it has its MLP."""
        return i < self.depth - self.pruned_attention, i < self.depth - self.pruned_mlp

    def _apply(
        self, tokens: Float[Array, "batch token feature"], *, train: bool
    ) -> Float[Array, "batch token feature"]:
        params = self.variables["params"]
        drops = train and (self.block.dropout > 0 or self.block.drop_path > 0)
        rates = self.drop_path_rates() if train and self.block.drop_path > 0 else None
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if drops else None
        # One scan for blocks with the same sub-blocks; pruning makes at most three of them.
        for sub_blocks, group in itertools.groupby(range(self.depth), self._sub_blocks):
            indices = list(group)
            if not any(sub_blocks):
                continue  # Only the residuals of these blocks are left.
            block = EncoderBlock(self.block, *sub_blocks, parent=None)

            def step(carry: Array, layer: Any, block: EncoderBlock = block) -> tuple[Any, None]:
                layer_params, key, rate = layer
                rngs, variables = {} if key is None else {"dropout": key}, {"params": layer_params}
                return block.apply(variables, carry, train=train, drop_path=rate, rngs=rngs), None

            layers = _layers(params, indices, stacked=self.scan)
            of_blocks = slice(indices[0], indices[-1] + 1)
            others = [None if values is None else values[of_blocks] for values in (keys, rates)]
            tokens = self._run(step, tokens, layers, *others)
        return tokens

    def drop_path_rates(self) -> Float[Array, " block"]:
        """Returns the rates of the blocks, which rise linearly from 0, as in timm."""
        return jnp.linspace(0, self.block.drop_path, self.depth, dtype=jnp.float32)

    def _run(self, step: Any, tokens: Any, layers: Any, keys: Any, rates: Any) -> Any:
        """Applies a step to each layer in turn."""
        step = checkpointed(step, self.rematerialise, in_loop=self.scan)
        if self.scan:
            return jax.lax.scan(step, tokens, (layers, keys, rates))[0]
        for i, layer in enumerate(layers):
            others = [None if values is None else values[i] for values in (keys, rates)]
            tokens, _ = step(tokens, (layer, *others))
        return tokens


def stack(params: Params) -> Params:
    """Stacks the parameters of a ViT's blocks on a leading axis, the form that trains fastest.

    The model takes either form. With stacked parameters, a training step compiles in half of the
    time. If pruned blocks differ in their sub-blocks, the parameters are returned unchanged. NumPy
    arrays stay on the host.
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
    """Undoes `stack`; returns parameters that are not stacked unchanged."""
    encoder = params["Transformer"]
    if STACK not in encoder:
        return params
    blocks, depth = encoder[STACK], len(jax.tree.leaves(encoder[STACK])[0])
    others = {name: encoder[name] for name in encoder if name != STACK}
    each = {f"{STACK}_{i}": jax.tree.map(lambda x, i=i: x[i], blocks) for i in range(depth)}
    return {**params, "Transformer": {**others, **each}}


def _block_names(encoder: Params) -> list[str]:
    names = [name for name in encoder if name.startswith(f"{STACK}_")]
    return sorted(names, key=lambda name: int(name.rpartition("_")[2]))


def _layers(params: Params, indices: list[int], *, stacked: bool) -> Any:
    """Returns the parameters of some blocks, as a list or on a leading axis."""
    if STACK in params:
        chosen = jax.tree.map(lambda x: x[indices[0] : indices[-1] + 1], params[STACK])
        return chosen if stacked else [jax.tree.map(lambda x, i=i: x[i], chosen) for i in indices]
    layers = [params[f"{STACK}_{i}"] for i in indices]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers) if stacked else layers

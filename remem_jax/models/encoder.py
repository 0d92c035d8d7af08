"""The blocks of a Vision Transformer, re-weighted, under the parameter names of the AugReg files.

Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; the re-weighting is Eq. 2 of
ReMem, Dong et al. 2025, https://arxiv.org/abs/2506.23041.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from remem_jax.models.attention import Attention
from remem_jax.models.mlp import MlpBlock
from remem_jax.models.norms import Norm
from remem_jax.models.rematerialisation import checkpointed, kept
from remem_jax.models.rotary import Rotary
from remem_jax.records import Params

LECUN = nn.initializers.lecun_normal()  # Flax's default.
STACK = "encoderblock"  # The stacked blocks; a single block has its number appended.
TAPS = "taps"  # Flax's collection of the outputs of some blocks.


class Block(NamedTuple):
    """The options that the blocks of one encoder share.

    Attributes:
        heads: Number of attention heads; divides the features.
        hidden: Width of the MLP's hidden layer.
        mlp_weight: Weight of the MLP's output (alpha).
        attention_weight: Weight of the attention's output (beta).
        residual: "two_minus" weights the residual by 2 - alpha (or beta), "plain" by 1.
        gelu: One of `mlp.GELUS`. AugReg was trained with "tanh".
        dropout: Share of the units dropped in training.
        dtype: Type of the computation; parameters are float32.
        drop_path: Share of the images for which a sub-block of the last block is left out in
            training.
        kernel_init: Initialiser of all kernels.
        norm: The norms.
        layer_scale: Whether the output of each sub-block is multiplied by a vector, `gamma_1` or
            `gamma_2` (LayerScale; Touvron et al. 2021, https://arxiv.org/abs/2103.17239).
        qkv_bias: See `Attention`.
        has_bias: Whether the output projection of the attention and the MLP's layers have biases.
        qk_norm: Whether each head's queries and keys are normalised.
        attention_norm: Whether the attention's output is normalised before its last projection.
        mlp_norm: Whether the MLP's hidden layer is normalised.
        gated: Whether the MLP is a SwiGLU: its hidden layer is multiplied by the SiLU of a gate,
            and has no GELU (Shazeer 2020, https://arxiv.org/abs/2002.05202).
        rope: See `Attention`.
        prefix: See `Attention`.
    """

    heads: int
    hidden: int
    mlp_weight: float = 1.0
    attention_weight: float = 1.0
    residual: str = "two_minus"
    gelu: str = "tanh"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    drop_path: float = 0.0
    kernel_init: nn.initializers.Initializer = LECUN
    norm: Norm = Norm()
    layer_scale: bool = False
    qkv_bias: str = "qkv"
    has_bias: bool = True
    qk_norm: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
    gated: bool = False
    rope: Rotary | None = None
    prefix: int = 0


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
        if self.has_attention:
            normed = shared.norm("LayerNorm_0", shared.dtype)(tokens)
            update = self._attention()(normed, normed)
            update = nn.Dropout(shared.dropout, deterministic=not train)(update)
            update = self._scaled("gamma_1", update)
            update = update if drop_path is None else self.drop_path(update, drop_path)
            tokens = kept("residual", self.add(shared.attention_weight, update, tokens))
        if self.has_mlp:
            normed = shared.norm("LayerNorm_2", shared.dtype)(tokens)
            update = self._scaled("gamma_2", self._mlp()(normed, train=train))
            update = update if drop_path is None else self.drop_path(update, drop_path)
            tokens = self.add(shared.mlp_weight, update, tokens)
        return tokens

    def _attention(self) -> Attention:
        shared = self.shared
        return Attention(
            shared.heads,
            shared.dtype,
            shared.kernel_init,
            shared.qkv_bias,
            shared.has_bias,
            shared.norm if shared.qk_norm else None,
            shared.norm if shared.attention_norm else None,
            shared.rope,
            shared.prefix,
            name="MultiHeadDotProductAttention_1",
        )

    def _mlp(self) -> MlpBlock:
        shared = self.shared
        return MlpBlock(
            shared.hidden,
            shared.gelu,
            shared.dropout,
            shared.dtype,
            shared.kernel_init,
            shared.has_bias,
            shared.gated,
            shared.norm if shared.mlp_norm else None,
            name="MlpBlock_3",
        )

    def _scaled(
        self, name: str, update: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch token feature"]:
        """Multiplies the output of a sub-block by its LayerScale, if there is one."""
        if not self.shared.layer_scale:
            return update
        gamma = self.param(name, nn.initializers.constant(1e-5), (update.shape[-1],))
        scale = jnp.broadcast_to(gamma.astype(update.dtype), update.shape)
        return kept("unscaled", update) * scale


class PositionEmbedding(nn.Module):
    """Adds one learned vector per token, in the order of the tokens.

    Attributes:
        without: Number of tokens at the start that have no position.
    """

    without: int = 0

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"]
    ) -> Float[Array, "batch token feature"]:
        shape = (1, tokens.shape[1] - self.without, tokens.shape[2])
        positions = self.param("pos_embedding", nn.initializers.normal(0.02), shape)
        if self.without:
            positions = jnp.pad(positions, ((0, 0), (self.without, 0), (0, 0)))
        return (tokens.astype(jnp.float32) + positions).astype(tokens.dtype)


class Encoder(nn.Module):
    """Position embedding, norm, blocks, norm; models differ in which norms they have.

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
        without_position: Number of tokens at the start that have no position.
        first_norm: Whether there is a norm before the blocks, `norm_pre`.
        last_norm: Whether there is a norm after the blocks, `encoder_norm`.
    """

    depth: int
    block: Block
    learned_positions: bool
    pruned_mlp: int
    pruned_attention: int
    rematerialise: str
    scan: bool
    without_position: int = 0
    first_norm: bool = False
    last_norm: bool = True

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "batch token feature"], *, train: bool, taps: Sequence[int] = ()
    ) -> Float[Array, "batch token feature"]:
        """Applies the encoder.

        Args:
            tokens: The tokens.
            train: Whether units are dropped.
            taps: Indices of blocks, from 0 and rising, whose outputs are sown as `TAPS`.
        """
        if self.learned_positions:
            tokens = PositionEmbedding(self.without_position, name="posembed_input")(tokens)
        tokens = nn.Dropout(self.block.dropout, deterministic=not train)(tokens)
        if self.first_norm:
            tokens = self.block.norm("norm_pre", self.block.dtype)(tokens)
        if self.is_initializing():
            for i in range(self.depth):
                block = EncoderBlock(self.block, *self._sub_blocks(i), name=f"{STACK}_{i}")
                tokens = block(tokens, train=train)
        else:
            tokens = self._apply(tokens, train=train, taps=taps)
        if self.last_norm:
            tokens = self.block.norm("encoder_norm", self.block.dtype)(tokens)
        return tokens

    def _sub_blocks(self, i: int) -> tuple[bool, bool]:
        """Returns whether block i has its attention, and whether it has its MLP."""
        return i < self.depth - self.pruned_attention, i < self.depth - self.pruned_mlp

    def _apply(
        self, tokens: Float[Array, "batch token feature"], *, train: bool, taps: Sequence[int]
    ) -> Float[Array, "batch token feature"]:
        params = self.variables["params"]
        drops = train and (self.block.dropout > 0 or self.block.drop_path > 0)
        rates = self.drop_path_rates() if train and self.block.drop_path > 0 else None
        keys = jax.random.split(self.make_rng("dropout"), self.depth) if drops else None
        # One scan for blocks with the same sub-blocks; pruning makes at most three of them. A tap
        # ends one.
        for (sub_blocks, _), group in itertools.groupby(
            range(self.depth), lambda i: (self._sub_blocks(i), bisect.bisect_left(taps, i))
        ):
            indices = list(group)
            if not any(sub_blocks):  # Only the residuals of these blocks are left.
                self._sow(tokens, indices, taps)
                continue
            block = EncoderBlock(self.block, *sub_blocks, parent=None)

            def step(carry: Array, layer: Any, block: EncoderBlock = block) -> tuple[Any, None]:
                layer_params, key, rate = layer
                rngs, variables = {} if key is None else {"dropout": key}, {"params": layer_params}
                return block.apply(variables, carry, train=train, drop_path=rate, rngs=rngs), None

            layers = _layers(params, indices, stacked=self.scan)
            of_blocks = slice(indices[0], indices[-1] + 1)
            others = [None if values is None else values[of_blocks] for values in (keys, rates)]
            tokens = self._run(step, tokens, layers, *others)
            self._sow(tokens, indices, taps)
        return tokens

    def _sow(self, tokens: Array, indices: Sequence[int], taps: Sequence[int]) -> None:
        """Sows the output of the last of some blocks, if it is among the taps."""
        if indices[-1] in taps:
            self.sow(TAPS, "tokens", tokens)

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

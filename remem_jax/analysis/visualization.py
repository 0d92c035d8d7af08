"""Pictures that maximise single neurons of an MLP (ReMem, Figures 7 to 15), by gradient ascent.

A picture is the sigmoid of a spectrum: noise whose amplitude falls as 1/f, in the colours of a data
set, so that a step changes large forms more than fine grain. It is shifted at random in each step.

Source: Olah et al. 2017, https://distill.pub/2017/feature-visualization/. What differs:
- A neuron's input is climbed, through a softplus, not its activation. GELU has its minimum at an
  input of about -0.75, and where most neurons of a top block begin, below it, its gradient leads
  away from any response.
- Colours are those of the data set at hand, around their mean; shifts are cyclic, as a spectrum is;
  pictures are neither scaled nor turned.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from remem_jax import random_streams
from remem_jax.analysis import activations
from remem_jax.checks import above, at_least, one_of, require
from remem_jax.models import encoder, vit
from remem_jax.records import Key, Variables

TOKENS = ("cls", "all")
_START = 0.0025  # Of the first spectrum: a picture of nearly one colour.
_LIFT = 100.0  # Added to the input of a neuron, GELU gives back the sum.

Spectra = Float[Array, "batch side frequency 3 2"]
Pictures = Float[Array, "batch side side 3"]
# (variables, neuron of each picture, seed of each) -> (pictures in [0, 1], activation by each).
Ascent = Callable[
    [Variables, Int[Array, " batch"], Int[Array, " batch"]],
    tuple[Pictures, Float[Array, " batch"]],
]


class Colours(NamedTuple):
    """How three independent values of unit variance become a colour: sigmoid(centre + matrix @ v).

    Attributes:
        centre: Logits of the mean colour.
        matrix: To first order, colours then have the covariance of the data.
    """

    centre: Float[np.ndarray, " 3"]
    matrix: Float[np.ndarray, "3 3"]


class Visualised(NamedTuple):
    """What each neuron responds to most, as found from each seed.

    Attributes:
        pictures: In [0, 1].
        activations: By the picture, unshifted: of the [CLS] token, or the mean over all tokens.
    """

    pictures: Float[np.ndarray, "neuron seed side side 3"]
    activations: Float[np.ndarray, "neuron seed"]


def colours(images: Float[np.ndarray, "image height width 3"]) -> Colours:
    """The colours of images, from the mean and the covariance of their pixels.

    Args:
        images: In [-1, 1], as models take them. Some hundreds say enough of a data set.

    Raises:
        ValueError: If there are no images, or a channel is all black or all white.
    """
    require(len(images) > 0, "There are no images to take colours from.")
    pixels = (np.asarray(images, np.float64).reshape(-1, 3) + 1) / 2
    mean = pixels.mean(axis=0)
    inside = bool(np.all((mean > 0) & (mean < 1)))
    require(inside, f"The mean of each channel must lie inside (-1, 1), got {2 * mean - 1}.")
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(pixels.T)))
    root = (axes * np.sqrt(np.maximum(variances, 0))) @ axes.T
    slope = mean * (1 - mean)  # Of the sigmoid there.
    return Colours(
        np.log(mean / (1 - mean)).astype(np.float32), (root / slope[:, None]).astype(np.float32)
    )


def pictures_of(spectra: Spectra, colours: Colours) -> Pictures:
    """The pictures of spectra, in [0, 1].

    Frequencies are those of `jnp.fft.rfft2`, as real and imaginary part, in units of 1/f (f in
    cycles per pixel; the mean counts as the lowest). A spectrum of zeros is the mean colour.
    """
    side = spectra.shape[1]
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    falling = jnp.asarray(1 / np.maximum(frequencies, 1 / side), jnp.float32)
    whole = jax.lax.complex(spectra[..., 0], spectra[..., 1]) * falling[None, :, :, None]
    values = jnp.fft.irfft2(whole, (side, side), axes=(1, 2), norm="ortho")
    logits = jnp.einsum("bhwi,ci->bhwc", values, jnp.asarray(colours.matrix))
    return jax.nn.sigmoid(logits + jnp.asarray(colours.centre)[None, None, None])


def shifted(picture: Float[Array, "side side 3"], jitter: int, key: Key) -> Array:
    """A picture shifted cyclically by up to `jitter` pixels in each direction."""
    return jnp.roll(picture, jax.random.randint(key, (2,), -jitter, jitter + 1), (0, 1))


def make_ascent(
    model: vit.VisionTransformer,
    colours: Colours,
    *,
    layer: int,
    side: int,
    tokens: str,
    jitter: int,
    steps: int,
    learning_rate: float,
) -> Ascent:
    """Builds the function that finds the pictures that neurons of a block respond to most.

    Each picture climbs for one neuron, from a spectrum that its seed draws; no picture depends on
    what else is in the batch. Only the blocks up to the neurons' run. All is computed in float32.

    Args:
        model: The ViT, in evaluation mode, without adapters.
        colours: Of the pictures.
        layer: Block whose MLP has the neurons, from 0.
        side: Of the pictures in pixels, for which the variables have positions.
        tokens: Whose response is climbed. "cls": the [CLS] token's, which in the topmost block is
            all of a neuron that reaches the embedding of [CLS]. "all": the mean over all tokens,
            which all pass something on from a lower block.
        jitter: Largest shift in pixels. A patch's worth makes the place of the patches not matter.
        steps: Of Adam.
        learning_rate: Of Adam, in units of the spectra of `pictures_of`.

    Returns:
        A pure function. The caller wraps it in `jax.jit`, and before that in `tuning.Tuning.wrap`
        if the model is tuned by LoRA. A neuron that the block does not have gives NaN.

    Raises:
        ValueError: If there is no such block, it has no MLP, the model has no such tokens, or a
            number is out of its range.
    """
    one_of("tokens", tokens, TOKENS)
    require(tokens == "all" or model.pool == "cls", 'This ViT has no [CLS]: set tokens to "all".')
    at_least("jitter", jitter, 0)
    at_least("steps", steps, 1)
    above("learning_rate", learning_rate, 0)
    look = activations.make_look(model.clone(dtype="float32"), [layer])
    tx = optax.adam(learning_rate)

    def responses(variables: Variables, pictures: Pictures, neurons: Array) -> Array:
        hidden = look(variables, 2 * pictures - 1).activations[layer]
        if tokens == "cls":
            hidden = hidden[:, :1]
        return jax.vmap(lambda own, neuron: jnp.take(own, neuron, axis=1))(hidden, neurons)

    def objective(spectra: Spectra, keys: Key, lifted: Variables, neurons: Array) -> Array:
        pictures = pictures_of(spectra, colours)
        pictures = jax.vmap(shifted, (0, None, 0))(pictures, jitter, keys)
        inputs = responses(lifted, pictures, neurons) - _LIFT
        return -jnp.sum(jnp.mean(jax.nn.softplus(inputs), axis=1))

    def ascent(variables: Variables, neurons: Array, seeds: Array) -> tuple[Pictures, Array]:
        lifted = _lifted(variables, layer)
        keys = jax.vmap(lambda seed: random_streams.key(seed, "visualization"))(seeds)

        def climb(step: Array, state: tuple[Spectra, Any]) -> tuple[Spectra, Any]:
            spectra, opt_state = state
            grads = jax.grad(objective)(spectra, _within(keys, step, "jitter"), lifted, neurons)
            updates, opt_state = tx.update(grads, opt_state)
            return jnp.asarray(optax.apply_updates(spectra, updates)), opt_state

        shape = (side, side // 2 + 1, 3, 2)
        first = jax.vmap(lambda key: _START * jax.random.normal(key, shape))
        spectra = first(_within(keys, "start"))
        spectra, _ = jax.lax.fori_loop(0, steps, climb, (spectra, tx.init(spectra)))
        pictures = pictures_of(spectra, colours)
        return pictures, jnp.mean(responses(variables, pictures, neurons), axis=1)

    return ascent


def _within(keys: Key, *path: Any) -> Key:
    return jax.vmap(lambda key: random_streams.within(key, *path))(keys)


def _lifted(variables: Variables, layer: int) -> Variables:
    """Variables with which the activations of a block are its neurons' inputs plus `_LIFT`."""
    params = encoder.unstack(variables["params"])
    name = f"{encoder.STACK}_{layer}"
    block = params["Transformer"][name]
    mlp = block["MlpBlock_3"]
    dense = {**mlp["Dense_0"], "bias": jnp.asarray(mlp["Dense_0"]["bias"]) + _LIFT}
    block = {**block, "MlpBlock_3": {**mlp, "Dense_0": dense}}
    return {
        **variables,
        "params": {**params, "Transformer": {**params["Transformer"], name: block}},
    }


def visualise(
    ascent: Ascent,
    variables: Variables,
    *,
    neurons: Sequence[int],
    seeds: Sequence[int],
    batch: int,
) -> Visualised:
    """Finds a picture for each neuron and seed.

    Args:
        ascent: From `make_ascent`, jitted.
        variables: Of the model.
        neurons: Of the block, from 0.
        seeds: Of the first spectrum and the shifts: all neurons begin alike.
        batch: Pictures at a time; the last ones are filled up. It makes no difference to them.

    Raises:
        ValueError: If there are no neurons or seeds, `batch` is below 1, or an activation is not
            finite.
    """
    at_least("batch", batch, 1)
    require(len(neurons) > 0 and len(seeds) > 0, "Give at least one neuron and one seed.")
    at_least("neurons", min(neurons), 0)
    pairs = np.array([(neuron, seed) for neuron in neurons for seed in seeds], np.uint32)
    found = []
    for first in range(0, len(pairs), batch):
        chunk = jnp.asarray(np.resize(pairs[first : first + batch], (batch, 2)))
        found.append(jax.device_get(ascent(variables, chunk[:, 0], chunk[:, 1])))
    pictures, reached = (np.concatenate(part)[: len(pairs)] for part in zip(*found, strict=True))
    finite = bool(np.all(np.isfinite(reached)))
    require(finite, f"The block has not all of the neurons {tuple(neurons)}, or gives NaN.")
    grid = (len(neurons), len(seeds))
    return Visualised(pictures.reshape(*grid, *pictures.shape[1:]), reached.reshape(grid))

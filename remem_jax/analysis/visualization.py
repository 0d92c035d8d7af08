"""Finds images that maximise single MLP neurons (ReMem, Figures 7 to 15), by gradient ascent.

An image is parametrised by its spectrum, which is scaled by 1/f, so that a step changes low
frequencies more than high ones; its colours have the covariance of a data set. In each step the
image is shifted at random.

Source: Olah et al. 2017, https://distill.pub/2017/feature-visualization/. Differences:
- The objective is the softplus of a neuron's input, not its activation. GELU has its minimum at an
  input of about -0.75. Most neurons of the last blocks start below that, where the gradient of GELU
  leads away from a high activation. In MLPs without such an input (those with a gate, a norm of the
  hidden layer or no biases), it is the softplus of the activation.
- Colours are those of the given data set, around their mean. Shifts are cyclic, like the spectrum.
  Images are neither scaled nor rotated.
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
_START = 0.0025  # Standard deviation of the initial spectrum: an image of nearly one colour.
_LIFT = 100.0  # Added to a neuron's input; GELU is the identity for values this large.

Spectra = Float[Array, "batch side frequency 3 2"]
Pictures = Float[Array, "batch side side 3"]
# (variables, neuron of each image, seed of each image) -> (images in [0, 1], activations).
Ascent = Callable[
    [Variables, Int[Array, " batch"], Int[Array, " batch"]],
    tuple[Pictures, Float[Array, " batch"]],
]


class Colours(NamedTuple):
    """The map from three independent values of unit variance to a colour.

    The colour is sigmoid(centre + matrix @ values).

    Attributes:
        centre: Logits of the mean colour.
        matrix: Chosen so that, to first order, colours have the covariance of the data.
    """

    centre: Float[np.ndarray, " 3"]
    matrix: Float[np.ndarray, "3 3"]


class Visualisation(NamedTuple):
    """Images that maximise neurons, one for each neuron and seed.

    Attributes:
        pictures: Images in [0, 1].
        activations: The neuron's activation for the image without shift: that of the [CLS] token,
            or the mean over all tokens.
    """

    pictures: Float[np.ndarray, "neuron seed side side 3"]
    activations: Float[np.ndarray, "neuron seed"]


def colours(images: Float[np.ndarray, "image height width 3"]) -> Colours:
    """Computes the colours of a data set from the mean and the covariance of pixels.

    Args:
        images: Images in [-1, 1]; a few hundred are enough.

    Raises:
        ValueError: If there are no images, or a channel is constantly -1 or 1.
    """
    require(len(images) > 0, "There are no images to compute colours from.")
    pixels = (np.asarray(images, np.float64).reshape(-1, 3) + 1) / 2
    mean = pixels.mean(axis=0)
    inside = bool(np.all((mean > 0) & (mean < 1)))
    require(inside, f"The mean of each channel must lie inside (-1, 1), got {2 * mean - 1}.")
    variances, axes = np.linalg.eigh(np.atleast_2d(np.cov(pixels.T)))
    root = (axes * np.sqrt(np.maximum(variances, 0))) @ axes.T
    slope = mean * (1 - mean)  # Slope of the sigmoid at the mean.
    return Colours(
        np.log(mean / (1 - mean)).astype(np.float32), (root / slope[:, None]).astype(np.float32)
    )


def pictures_of(spectra: Spectra, colours: Colours) -> Pictures:
    """Computes the images of spectra, in [0, 1].

    A spectrum has the frequencies of `jnp.fft.rfft2` as real and imaginary parts, in units of 1/f
    with f in cycles per pixel. The mean is scaled like the lowest frequency. A spectrum of zeros
    gives the mean colour.
    """
    side = spectra.shape[1]
    frequencies = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    scale = jnp.asarray(1 / np.maximum(frequencies, 1 / side), jnp.float32)
    whole = jax.lax.complex(spectra[..., 0], spectra[..., 1]) * scale[None, :, :, None]
    values = jnp.fft.irfft2(whole, (side, side), axes=(1, 2), norm="ortho")
    logits = jnp.einsum("bhwi,ci->bhwc", values, jnp.asarray(colours.matrix))
    return jax.nn.sigmoid(logits + jnp.asarray(colours.centre)[None, None, None])


def shifted(picture: Float[Array, "side side 3"], jitter: int, key: Key) -> Array:
    """Shifts an image cyclically by up to `jitter` pixels in each direction."""
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
    """Builds the function that finds images that maximise neurons of a block.

    Each image is optimised for one neuron, from a random spectrum given by its seed, independently
    of the rest of the batch. Only the blocks up to that of the neurons are computed, in float32.

    Args:
        model: The ViT, in evaluation mode, without adapters.
        colours: Colours of the images.
        layer: Index of the block with the neurons, from 0.
        side: Side of the images in pixels, which must fit the position embeddings.
        tokens: The tokens whose response is maximised. "cls": the [CLS] token; in the last block, a
            neuron reaches the embedding only through it. "all": the mean over all tokens.
        jitter: Largest shift in pixels. The size of a patch makes the result independent of the
            grid of patches.
        steps: Number of steps of Adam.
        learning_rate: Learning rate of Adam, in units of the spectra of `pictures_of`.

    Returns:
        A pure function. The caller wraps it in `jax.jit`, and before that in `tuning.Tuning.wrap`
        if the model has LoRA. An index beyond the block's neurons gives NaN.

    Raises:
        ValueError: If there is no such block, it has no MLP, the model has no such tokens, or a
            number is out of range.
    """
    one_of("tokens", tokens, TOKENS)
    require(tokens == "all" or model.has_cls, 'This ViT has no [CLS] token: set tokens to "all".')
    at_least("jitter", jitter, 0)
    at_least("steps", steps, 1)
    above("learning_rate", learning_rate, 0)
    capture = activations.make_capture(model.clone(dtype="float32"), [layer])
    # Elsewhere no bias makes the activation equal to the neuron's input.
    lift = _LIFT if model.has_bias and not (model.gated or model.mlp_norm) else 0.0
    tx = optax.adam(learning_rate)

    def responses(variables: Variables, pictures: Pictures, neurons: Array) -> Array:
        hidden = capture(variables, 2 * pictures - 1).hidden[layer]
        if tokens == "cls":
            hidden = hidden[:, :1]
        return jax.vmap(lambda values, neuron: jnp.take(values, neuron, axis=1))(hidden, neurons)

    def objective(spectra: Spectra, keys: Key, lifted: Variables, neurons: Array) -> Array:
        pictures = pictures_of(spectra, colours)
        pictures = jax.vmap(shifted, (0, None, 0))(pictures, jitter, keys)
        inputs = responses(lifted, pictures, neurons) - lift
        return -jnp.sum(jnp.mean(jax.nn.softplus(inputs), axis=1))

    def ascent(variables: Variables, neurons: Array, seeds: Array) -> tuple[Pictures, Array]:
        lifted = _lifted(variables, layer) if lift else variables
        keys = jax.vmap(lambda seed: random_streams.key(seed, "visualization"))(seeds)

        def ascend(step: Array, state: tuple[Spectra, Any]) -> tuple[Spectra, Any]:
            spectra, opt_state = state
            grads = jax.grad(objective)(spectra, _within(keys, step, "jitter"), lifted, neurons)
            updates, opt_state = tx.update(grads, opt_state)
            return jnp.asarray(optax.apply_updates(spectra, updates)), opt_state

        shape = (side, side // 2 + 1, 3, 2)
        initial = jax.vmap(lambda key: _START * jax.random.normal(key, shape))
        spectra = initial(_within(keys, "start"))
        spectra, _ = jax.lax.fori_loop(0, steps, ascend, (spectra, tx.init(spectra)))
        pictures = pictures_of(spectra, colours)
        return pictures, jnp.mean(responses(variables, pictures, neurons), axis=1)

    return ascent


def _within(keys: Key, *path: Any) -> Key:
    return jax.vmap(lambda key: random_streams.within(key, *path))(keys)


def _lifted(variables: Variables, layer: int) -> Variables:
    """Adds `_LIFT` to a block's biases; activations then equal the neurons' inputs plus `_LIFT`."""
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
) -> Visualisation:
    """Finds an image for each neuron and seed.

    Args:
        ascent: The jitted result of `make_ascent`.
        variables: Variables of the model.
        neurons: Indices of the neurons in the block, from 0.
        seeds: Random seeds of the initial spectra and the shifts, the same for all neurons.
        batch: Number of images at a time; it does not change them.

    Raises:
        ValueError: If there are no neurons or seeds, `batch` is below 1, or an activation is not
            finite.
    """
    at_least("batch", batch, 1)
    require(len(neurons) > 0 and len(seeds) > 0, "Give at least one neuron and one seed.")
    at_least("neurons", min(neurons), 0)
    pairs = np.array([(neuron, seed) for neuron in neurons for seed in seeds], np.uint32)
    outputs = []
    for first in range(0, len(pairs), batch):
        chunk = jnp.asarray(np.resize(pairs[first : first + batch], (batch, 2)))
        outputs.append(jax.device_get(ascent(variables, chunk[:, 0], chunk[:, 1])))
    pictures, reached = (np.concatenate(each)[: len(pairs)] for each in zip(*outputs, strict=True))
    finite = bool(np.all(np.isfinite(reached)))
    require(
        finite, f"The block lacks some of the neurons {tuple(neurons)}, or its outputs are NaN."
    )
    grid = (len(neurons), len(seeds))
    return Visualisation(pictures.reshape(*grid, *pictures.shape[1:]), reached.reshape(grid))

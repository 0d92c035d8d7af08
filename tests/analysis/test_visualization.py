"""Feature visualisation: parts against NumPy and SciPy; the whole where the optimum is known."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, special

from remem_jax import models
from remem_jax.analysis import visualization
from remem_jax.models import encoder, vit
from remem_jax.weights import augreg
from tests.oracles import peers
from tests.weights import test_timm_families as timm_peers
from tests.weights.timm_families import CLASSES, FAMILIES, SIDES

SIZE = vit.Size(patch=4, features=8, depth=2, heads=2, mlp=7)
DETECTOR = vit.VisionTransformer(vit.Size(4, features=4, depth=1, heads=1, mlp=2), classes=2)
PLAIN = visualization.Colours(np.zeros(3, np.float32), np.eye(3, dtype=np.float32))
TOP = {"layer": 1, "tokens": "cls"}
BOTTOM = {"layer": 0, "tokens": "all"}

pytestmark = pytest.mark.usefixtures("mixed_dtypes")


def tiny(depth: int = 2, **options: Any) -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE._replace(depth=depth), classes=3, **options)


@functools.cache
def variables_of(depth: int = 2) -> dict[str, Any]:
    rng = np.random.default_rng(1)

    def draw(leaf: Any) -> jax.Array:
        return jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32)

    return {"params": jax.tree.map(draw, models.shapes(tiny(depth), 8))}


def make(model: vit.VisionTransformer, **options: Any) -> visualization.Ascent:
    settings = {"side": 8, "jitter": 0, "steps": 40, "learning_rate": 0.1, **options}
    return visualization.make_ascent(model, PLAIN, **settings)


@functools.cache
def top() -> visualization.Ascent:
    return jax.jit(make(tiny(), **TOP))


@functools.cache
def bottom() -> visualization.Ascent:
    """An ascent for a model with other options; its variables are stacked."""
    return jax.jit(make(tiny(dtype="bfloat16", rematerialise="blocks"), **BOTTOM, jitter=1))


def stacked_variables() -> dict[str, Any]:
    return {"params": encoder.stack(variables_of()["params"])}


class Recorder:
    """Records the outputs of the first dense layers of MLPs, block by block."""

    def __init__(self) -> None:
        self.inputs: list[jax.Array] = []

    def __call__(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if context.module.path[-2:] == ("MlpBlock_3", "Dense_0"):
            self.inputs.append(out)
        return out


def gelu(inputs: Any) -> Any:
    return inputs * (1 + np.tanh((2 / np.pi) ** 0.5 * (inputs + 0.044715 * inputs**3))) / 2


def response(images: Any, neuron: int, layer: int, tokens: str) -> np.ndarray:
    recorder = Recorder()
    with nn.intercept_methods(recorder):
        tiny(scan=False).apply(variables_of(), jnp.asarray(images))
    values = gelu(np.asarray(recorder.inputs[layer])[..., neuron])
    return values[:, 0] if tokens == "cls" else values.mean(axis=1)


def random_images(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.uniform(-1, 1, (count, 8, 8, 3)).astype(np.float32)


def skewed_images(rng: np.random.Generator) -> np.ndarray:
    """Images whose channels have different means and are correlated."""
    values = rng.uniform(-1, 1, (20, 16, 16, 3)) @ rng.uniform(-0.3, 0.3, (3, 3))
    return np.asarray(values + np.array([0.1, -0.2, 0.05]), np.float32)


@pytest.mark.parametrize("side", [6, 7])
def test_pictures_are_the_inverse_transform_of_numpy(rng: np.random.Generator, side: int) -> None:
    spectra = rng.normal(0, 1, (2, side, side // 2 + 1, 3, 2)).astype(np.float32)
    colours = visualization.Colours(
        rng.normal(size=3).astype(np.float32), rng.normal(size=(3, 3)).astype(np.float32)
    )

    actual = visualization.pictures_of(jnp.asarray(spectra), colours)

    complex_spectra = spectra[..., 0] + 1j * spectra[..., 1]
    for y, x in np.ndindex(side, side // 2 + 1):
        radius = np.hypot(min(y, side - y) / side, x / side)
        complex_spectra[:, y, x] /= max(radius, 1 / side)
    values = (
        np.fft.irfft2(complex_spectra, (side, side), axes=(1, 2)) * side
    )  # Square root of the pixels.
    expected = special.expit(values @ colours.matrix.T + colours.centre)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_a_spectrum_of_zeros_is_the_mean_colour(rng: np.random.Generator) -> None:
    images = skewed_images(rng)

    actual = visualization.pictures_of(jnp.zeros((1, 8, 5, 3, 2)), visualization.colours(images))

    mean = (images.mean(axis=(0, 1, 2)) + 1) / 2
    np.testing.assert_allclose(actual, np.broadcast_to(mean, (1, 8, 8, 3)), rtol=1e-4)


def test_colours_are_the_square_root_of_the_covariance(rng: np.random.Generator) -> None:
    images = skewed_images(rng)

    actual = visualization.colours(images)

    pixels = (images.reshape(-1, 3) + 1) / 2
    mean = pixels.mean(axis=0)
    expected = linalg.sqrtm(np.cov(pixels.T)) / (mean * (1 - mean))[:, None]
    np.testing.assert_allclose(actual.matrix, expected, rtol=1e-3)


def test_small_deviations_have_the_covariance_of_the_data(rng: np.random.Generator) -> None:
    images = skewed_images(rng)
    colours = visualization.colours(images)
    independent = 0.01 * rng.normal(size=(100_000, 3))

    drawn = special.expit(independent @ colours.matrix.T + colours.centre)

    expected = np.cov(images.reshape(-1, 3).T) / 4  # From [-1, 1] to [0, 1].
    np.testing.assert_allclose(np.cov(drawn.T) / 0.01**2, expected, rtol=0.05, atol=2e-4)


def test_grey_images_make_grey_pictures(rng: np.random.Generator) -> None:
    grey = np.repeat(random_images(rng, 4)[..., :1], 3, axis=-1)
    spectra = jnp.asarray(rng.normal(size=(1, 8, 5, 3, 2)), jnp.float32)

    picture = np.asarray(visualization.pictures_of(spectra, visualization.colours(grey)))

    np.testing.assert_allclose(picture[..., 1:], picture[..., :2], atol=1e-4)
    assert picture.std() > 0.01


def test_shifts_are_all_within_the_jitter(key: jax.Array) -> None:
    picture = jnp.zeros((8, 8, 3)).at[4, 4].set(1.0)
    keys = jax.random.split(key, 200)

    moved = jax.vmap(lambda key: visualization.shifted(picture, 1, key))(keys)

    places = {tuple(place) for place in np.argwhere(moved[..., 0])[:, 1:].tolist()}
    assert places == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}
    np.testing.assert_array_equal(np.sum(moved, axis=(1, 2, 3)), 3.0)


def detector(pattern: np.ndarray, bias: float) -> dict[str, Any]:
    """Variables of `DETECTOR` with which neuron 1 increases with the product of pattern and patch.

    Two features are plus and minus that product; two constants keep the norm from cancelling it.
    """
    params: Any = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), models.shapes(DETECTOR, 4))
    signs = np.array([1.0, -1.0, 0.0, 0.0])
    kernel = np.asarray(pattern[..., None] * signs / pattern.size, np.float32)
    params["embedding"] = {"kernel": jnp.asarray(kernel), "bias": jnp.array([0.0, 0, 1, -1])}
    block = params["Transformer"][f"{encoder.STACK}_0"]
    block["LayerNorm_2"]["scale"] = jnp.ones(4)
    block["MlpBlock_3"]["Dense_0"] = {
        "kernel": jnp.asarray(np.outer(signs, [-1.0, 1.0]), jnp.float32),
        "bias": jnp.full(2, bias),
    }
    return {"params": params}


@functools.cache
def detecting() -> visualization.Ascent:
    return jax.jit(make(DETECTOR, layer=0, tokens="all", side=4, steps=100))


# Below its minimum at -0.75, the gradient of GELU would lead to the opposite of the pattern.
@pytest.mark.parametrize("bias", [0.0, -3.0], ids=["on", "off"])
def test_a_linear_detector_is_maximised_by_its_pattern(
    rng: np.random.Generator, bias: float
) -> None:
    pattern = rng.choice([-1.0, 1.0], (4, 4, 3))
    variables = detector(pattern, bias)

    result = visualization.visualise(detecting(), variables, neurons=[1, 0], seeds=[0, 1], batch=4)

    # The product has its maximum, 1, if each sub-pixel is 0 or 1 by the sign of the pattern.
    for of_neuron, sign in zip(result.pictures, (1, -1), strict=True):
        for picture in of_neuron:
            assert np.corrcoef(picture.ravel(), sign * pattern.ravel())[0, 1] > 0.9
    # The tokens are [CLS], which is zero, and one patch, whose product is doubled.
    expected = (gelu(bias) + gelu(bias + 2)) / 2
    np.testing.assert_allclose(result.activations, np.full((2, 2), expected), rtol=0.05)


def test_pictures_of_the_last_block_beat_random_images(rng: np.random.Generator) -> None:
    result = visualization.visualise(top(), variables_of(), neurons=[0, 3, 6], seeds=[1], batch=3)

    images = random_images(rng, 300)
    for i, neuron in enumerate([0, 3, 6]):
        responses = response(2 * result.pictures[i] - 1, neuron, **TOP)
        np.testing.assert_allclose(result.activations[i], responses, rtol=1e-3)
        assert responses.min() > response(images, neuron, **TOP).max()


# An MLP with a gate and a norm, and one with the quick GELU, which is lifted.
@pytest.mark.parametrize("name", ["eva02_clip", "clip_quickgelu"])
def test_pictures_for_timms_networks_beat_random_images(
    rng: np.random.Generator, name: str, tmp_path: pathlib.Path
) -> None:
    peer, checkpoint = timm_peers.saved(FAMILIES[name], tmp_path / "vit.safetensors")
    model, side = checkpoint.make(classes=CLASSES), SIDES[0]
    ascent = jax.jit(make(model, layer=0, tokens="all", side=side))

    result = visualization.visualise(
        ascent, augreg.into(checkpoint, model), neurons=[0, 3, 6], seeds=[1], batch=3
    )

    hidden: list[Any] = []
    hook = lambda module, inputs: hidden.append(inputs[0].mean(1).numpy())  # noqa: E731
    peer.blocks[0].mlp.fc2.register_forward_pre_hook(hook)
    pictures = np.asarray(2 * result.pictures[:, 0] - 1)
    with peers.torch().no_grad():
        for images in (pictures, rng.uniform(-1, 1, (300, side, side, 3)).astype(np.float32)):
            peer(timm_peers.as_torch(images))
    for i, neuron in enumerate([0, 3, 6]):
        np.testing.assert_allclose(result.activations[i, 0], hidden[0][i, neuron], rtol=1e-3)
        assert hidden[0][i, neuron] > hidden[1][:, neuron].max()


def shifted_response(images: np.ndarray, neuron: int) -> np.ndarray:
    """Mean response in the first block over all shifts by at most one pixel."""
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    shifted = (np.roll(images, shift, (1, 2)) for shift in shifts)
    return np.mean([response(each, neuron, **BOTTOM) for each in shifted], axis=0)


def test_pictures_of_the_first_block_beat_random_images_for_any_shift(
    rng: np.random.Generator,
) -> None:
    result = pictures_for([0, 3, 6], [1], 3)

    images = random_images(rng, 300)
    for i, neuron in enumerate([0, 3, 6]):
        picture = 2 * result.pictures[i] - 1
        responses = response(picture, neuron, **BOTTOM)
        np.testing.assert_allclose(result.activations[i], responses, rtol=1e-3)
        every, random = (shifted_response(each, neuron) for each in (picture, images))
        assert every.min() > random.max()


def pictures_for(
    neurons: Sequence[int], seeds: Sequence[int], batch: int
) -> visualization.Visualisation:
    return visualization.visualise(
        bottom(), stacked_variables(), neurons=neurons, seeds=seeds, batch=batch
    )


def test_a_picture_depends_on_its_own_neuron_and_seed_alone() -> None:
    several = pictures_for([0, 3, 6], [5, 1], 3)

    others = pictures_for([3, 6, 2], [1], 3)

    np.testing.assert_allclose(several.pictures[1:, 1], others.pictures[:2, 0], atol=1e-5)
    np.testing.assert_allclose(several.activations[1:, 1], others.activations[:2, 0], rtol=1e-5)
    for other in (several.pictures[1, 0], several.pictures[0, 1]):
        assert np.abs(several.pictures[1, 1] - other).max() > 0.1


def test_a_batch_that_is_not_full_makes_no_difference() -> None:
    several, alone = pictures_for([0, 3], [5, 1], 3), pictures_for([3], [1], 3)

    assert several.pictures.shape == (2, 2, 8, 8, 3)
    np.testing.assert_allclose(several.pictures[1, 1], alone.pictures[0, 0], atol=1e-5)
    np.testing.assert_allclose(several.activations[1, 1], alone.activations[0, 0], rtol=1e-5)


def test_later_blocks_are_not_computed() -> None:
    def flops(depth: int) -> float:
        arguments = (variables_of(depth), jnp.array([2]), jnp.array([0]))
        cost: Any = jax.jit(make(tiny(depth), **BOTTOM)).lower(*arguments).cost_analysis()
        return cost["flops"]

    assert flops(5) == flops(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "best"}, "tokens must be one of cls, all; got 'best'"),
        ({"jitter": -1}, "jitter must be at least 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"layer": 2}, "from 0 to 1, the blocks with an MLP"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tiny(), **{**TOP, **options})


def test_a_missing_cls_token_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no \[CLS\] token: set tokens"):
        make(tiny(pool="gap"), **TOP)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neurons": [2, 7]}, r"lacks some of the neurons \(2, 7\)"),
        ({"neurons": [-1]}, "neurons must be at least 0"),
        ({"seeds": []}, "at least one neuron and one seed"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_wrong_neurons_seeds_and_batches_are_refused(options: dict[str, Any], message: str) -> None:
    settings: Any = {"neurons": [0], "seeds": [0], "batch": 3, **options}
    with pytest.raises(ValueError, match=message):
        visualization.visualise(top(), variables_of(), **settings)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((0, 8, 8, 3), np.float32), "no images"),
        (np.full((1, 8, 8, 3), -1, np.float32), r"lie inside \(-1, 1\), got"),
    ],
)
def test_images_without_colours_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visualization.colours(images)

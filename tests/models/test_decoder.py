"""The decoder of Table 7 agrees with torch's layers in the order of the table."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from remem_jax import models
from remem_jax.models import decoder
from tests.oracles import peers

ALIGNED = pytest.mark.parametrize("align_corners", [True, False])
SIZE, SIDE, WIDTH = 16, 1, 5


def drawn(align_corners: bool, side: int = SIDE) -> tuple[decoder.Decoder, Any]:
    """Makes a decoder with random variables."""
    model = decoder.make(image_size=SIZE, align_corners=align_corners)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, WIDTH)))
    rng = np.random.default_rng(3)

    def draw(leaf: Any) -> Array:
        is_kernel = len(leaf.shape) == 4
        values = rng.normal(0, 0.1, leaf.shape) if is_kernel else rng.uniform(0.2, 0.7, leaf.shape)
        return jnp.asarray(values, jnp.float32)

    return model, jax.tree.map(draw, shapes)


def torch_decoder(variables: Any, align_corners: bool) -> Any:
    """Builds Table 7 from torch's modules, with these weights."""
    torch = peers.torch()

    def layer(name: str, kind: Any, **options: Any) -> Any:
        params = variables["params"][name]
        if kind is torch.nn.BatchNorm2d:
            module = kind(len(params["scale"]))
            running = variables["batch_stats"][name]
            module.running_mean.copy_(torch.tensor(np.asarray(running["mean"])))
            module.running_var.copy_(torch.tensor(np.asarray(running["var"])))
            weight = np.asarray(params["scale"])
        else:
            weight = np.asarray(params["kernel"]).transpose(3, 2, 0, 1)
            module = kind(*weight.shape[1::-1], weight.shape[2], **options)
        module.weight.data = torch.tensor(weight)
        module.bias.data = torch.tensor(np.asarray(params["bias"]))
        return module

    def resizing(side: int) -> Any:
        return torch.nn.Upsample((side, side), mode="bilinear", align_corners=align_corners)

    modules = []
    for number, share in enumerate((8, 4, 2), start=1):
        modules += [
            resizing(SIZE // share),
            layer(f"conv{number}", torch.nn.Conv2d, padding=int(number > 1)),
            layer(f"bn{number}", torch.nn.BatchNorm2d),
            torch.nn.ReLU(),
        ]
    modules += [resizing(SIZE), layer("conv4", torch.nn.Conv2d, padding=1)]
    return torch.nn.Sequential(*modules)


def torch_maps(maps: Array) -> Any:
    return peers.torch().tensor(np.asarray(maps).transpose(0, 3, 1, 2).copy())


def our_maps(maps: Any) -> np.ndarray:
    return maps.detach().numpy().transpose(0, 2, 3, 1)


def test_the_parameter_count_for_768_features_matches_the_table() -> None:
    model = decoder.make(image_size=224)

    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 14, 14, 768)))

    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == 139_467


def test_the_output_has_the_size_of_the_images() -> None:
    model = decoder.make(image_size=224)

    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((2, 7, 7, 8)))

    assert logits.shape == (2, 224, 224, 3)


@ALIGNED
@pytest.mark.parametrize(("old", "new"), [(1, 4), (2, 5), (4, 8), (5, 3), (3, 1)])
def test_resizing_matches_torch(
    rng: np.random.Generator, old: int, new: int, align_corners: bool
) -> None:
    maps = jnp.asarray(rng.normal(size=(2, old, old, 3)), jnp.float32)
    interpolate = peers.torch().nn.functional.interpolate
    expected = interpolate(
        torch_maps(maps), size=(new, new), mode="bilinear", align_corners=align_corners
    )

    actual = decoder.resized(maps, new, align_corners=align_corners)

    # Torch rounds the positions, which are up to 5, to float32.
    np.testing.assert_allclose(actual, our_maps(expected), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("side", "align_corners"), [(1, True), (2, False), (4, True)])
def test_evaluation_agrees_with_torch(
    rng: np.random.Generator, side: int, align_corners: bool
) -> None:
    model, variables = drawn(align_corners, side)
    features = jnp.asarray(rng.normal(size=(2, side, side, WIDTH)), jnp.float32)
    expected = torch_decoder(variables, align_corners).eval()(torch_maps(features))

    actual = jax.jit(model.apply)(variables, features)

    np.testing.assert_allclose(
        actual, our_maps(expected), rtol=1e-4, atol=1e-4
    )  # The float32 error of 300 products.


def test_training_agrees_with_torch(rng: np.random.Generator) -> None:
    model, variables = drawn(align_corners=True)
    apply = jax.jit(models.train_apply(model))
    features = jnp.asarray(rng.normal(size=(4, SIDE, SIDE, WIDTH)), jnp.float32)
    peer = torch_decoder(variables, align_corners=True).train()
    expected = peer(torch_maps(features))

    actual, updates = apply(
        variables["params"], {"batch_stats": variables["batch_stats"]}, features, jax.random.key(0)
    )

    np.testing.assert_allclose(
        actual, our_maps(expected), rtol=1e-4, atol=1e-4
    )  # The float32 error of 300 products.
    for ours, theirs in (("bn1", peer[2]), ("bn2", peer[6]), ("bn3", peer[10])):
        result = updates["batch_stats"][ours]
        np.testing.assert_allclose(
            result["mean"], theirs.running_mean.numpy(), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(result["var"], theirs.running_var.numpy(), rtol=1e-4)


def test_kernels_are_initialised_by_kaiming_with_fan_out() -> None:
    model = decoder.make(image_size=8)
    variables = decoder.make_init(model, side=1, width=4)(jax.random.key(0))

    kernel = np.asarray(variables["params"]["conv2"]["kernel"])  # It has 36,864 weights.

    assert kernel.std() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.02)


def test_tokens_are_arranged_row_by_row() -> None:
    tokens = jnp.arange(12.0).reshape(1, 4, 3)

    np.testing.assert_array_equal(decoder.grid(tokens)[0, 1, 0], tokens[0, 2])


def test_tokens_with_cls_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 tokens fill no square.*no \[CLS\]"):
        decoder.grid(jnp.zeros((1, 5, 3)))


def test_the_error_on_a_size_that_is_not_a_multiple_of_8_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"multiple of 8 pixels, got 12; set config\.data\.image"):
        decoder.make(image_size=12)

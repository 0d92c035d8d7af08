"""Folding: the plain network has the outputs of the re-weighted one."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.weights import augreg, folding
from tests.oracles import peers, vit_numpy
from tests.weights.test_augreg import TI16, reference_images

SIZE = vit.Size(patch=4, features=16, depth=6, heads=2)


def random_arrays(rng: np.random.Generator, depth: int = 6, **options: Any) -> dict[str, Any]:
    model = vit.VisionTransformer(SIZE._replace(depth=depth), 5, **options)
    shapes = augreg.names_and_shapes(model, 16)
    arrays = {n: rng.normal(size=shape, scale=0.3) for n, shape in shapes.items()}
    return {n: (a + n.endswith("scale")).astype(np.float32) for n, a in arrays.items()}


def logits(arrays: Any, image: np.ndarray, **weights: Any) -> np.ndarray:
    weights = {"alpha": 1.0, "beta": 1.0, "plain": False, **weights}
    return vit_numpy.logits(arrays, image, patch=4, heads=2, **weights)


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, (16, 16, 3))


@pytest.mark.parametrize("residual", vit.RESIDUALS)
@pytest.mark.parametrize("depth", [1, 6])
@pytest.mark.parametrize("pool", vit.POOLS)
def test_the_folded_network_has_the_same_outputs(
    rng: np.random.Generator, image: np.ndarray, residual: str, depth: int, pool: str
) -> None:
    arrays = random_arrays(rng, depth, pool=pool)
    expected = logits(arrays, image, alpha=0.8, beta=0.9, plain=residual == "plain")

    folded = folding.fold(arrays, mlp_weight=0.8, attention_weight=0.9, residual=residual)

    # float32 parameters, and the epsilon of the norms.
    np.testing.assert_allclose(logits(folded, image), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(logits(arrays, image) - expected).max() > 0.01


@pytest.mark.parametrize(("pruned_mlp", "pruned_attention"), [(2, 0), (0, 3), (2, 1), (6, 6)])
def test_a_pruned_network_becomes_one_of_full_depth(
    rng: np.random.Generator, image: np.ndarray, pruned_mlp: int, pruned_attention: int
) -> None:
    pruned: dict[str, Any] = {"pruned_mlp": pruned_mlp, "pruned_attention": pruned_attention}
    arrays = random_arrays(rng, **pruned)
    expected = logits(arrays, image, alpha=0.8, beta=0.9)

    full = augreg.names_and_shapes(vit.VisionTransformer(SIZE, 5), 16)
    weights: dict[str, Any] = {"mlp_weight": 0.8, "attention_weight": 0.9, "residual": "two_minus"}
    folded = folding.fold(arrays, **weights, **pruned, unpruned=full)

    np.testing.assert_allclose(logits(folded, image), expected, rtol=1e-5, atol=1e-5)
    assert {name: array.shape for name, array in folded.items()} == full


def test_a_pruned_network_needs_the_shapes_of_the_full_one(rng: np.random.Generator) -> None:
    arrays = random_arrays(rng, pruned_mlp=1)
    with pytest.raises(SettingError, match="give the shapes of the latter as unpruned"):
        folding.fold(arrays, mlp_weight=0.8, attention_weight=0.9, residual="plain", pruned_mlp=1)


def test_only_the_output_projections_change(rng: np.random.Generator) -> None:
    arrays = random_arrays(rng)

    folded = folding.fold(arrays, mlp_weight=0.8, attention_weight=0.9, residual="two_minus")

    changed = {n for n in arrays if not np.array_equal(arrays[n], folded[n])}
    ends = ("Attention_1/out/kernel", "Attention_1/out/bias", "Dense_1/kernel", "Dense_1/bias")
    assert changed == {n for n in arrays if n.endswith(ends)}
    assert {folded[n].dtype for n in folded} == {np.dtype(np.float32)}


def test_weights_of_one_change_nothing(rng: np.random.Generator) -> None:
    arrays = random_arrays(rng)

    folded = folding.fold(arrays, mlp_weight=1.0, attention_weight=1.0, residual="two_minus")

    for name, array in arrays.items():
        np.testing.assert_array_equal(folded[name], array)


def test_nested_parameters_stay_nested(rng: np.random.Generator) -> None:
    arrays = random_arrays(rng, depth=1)
    weights: dict[str, Any] = {"mlp_weight": 0.8, "attention_weight": 0.9, "residual": "plain"}
    nested = jax.tree.map(jax.numpy.asarray, traverse_util.unflatten_dict(arrays, sep="/"))

    folded = folding.fold(nested, **weights)

    expected = traverse_util.unflatten_dict(folding.fold(arrays, **weights), sep="/")
    jax.tree.map(np.testing.assert_array_equal, folded, expected)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mlp_weight": 2.0}, "mlp_weight must lie between 0 and 2, got 2.0"),
        ({"attention_weight": 0.0}, "attention_weight must lie between 0 and 2"),
        ({"residual": "none"}, "residual must be one of two_minus, plain; got 'none'"),
        ({"pruned_mlp": 1}, "would have depths 6 and 7"),
    ],
)
def test_settings_without_an_equal_plain_network_are_named(
    rng: np.random.Generator, change: dict[str, Any], complaint: str
) -> None:
    settings = {"mlp_weight": 0.8, "attention_weight": 0.9, "residual": "plain", **change}
    with pytest.raises(SettingError, match=complaint):
        folding.fold(random_arrays(rng), **settings)


def test_timm_loads_a_folded_teacher_of_full_size(
    shared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    torch, library = peers.torch(), peers.timm()
    weights: dict[str, Any] = {"mlp_weight": 0.8, "attention_weight": 0.9}
    model: Any = models.make("vit", variant="Ti/16", classes=1000, gelu="erf", **weights)
    variables = augreg.load(shared / TI16, model)
    images = reference_images()
    expected = np.asarray(jax.jit(model.apply)(variables, images))

    folded = folding.fold(variables["params"], residual=model.residual, **weights)
    augreg.save(tmp_path / "folded.npz", folded)
    served = library.create_model("vit_tiny_patch16_224").eval()
    served.load_pretrained(str(tmp_path / "folded.npz"))
    with torch.no_grad():
        actual = served(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()

    np.testing.assert_allclose(actual, expected, atol=1e-3)
    np.testing.assert_array_equal(actual.argmax(1), expected.argmax(1))


class InBfloat16(NamedTuple):
    """The features of a re-weighted network and of its folded one, in each type."""

    exact: np.ndarray
    reweighted: np.ndarray
    folded: np.ndarray
    with_rounded_weights: np.ndarray


def _as_initialised(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of a network whose activations keep their size from block to block."""
    deviation = float(np.prod(shape[:-1])) ** -0.5 if name.endswith("kernel") else 0.1
    drawn = rng.normal(name.endswith("scale"), deviation, shape)
    return drawn.astype(np.float32)


@pytest.fixture(scope="module")
def in_bfloat16() -> InBfloat16:
    rng = np.random.default_rng(0)
    size = SIZE._replace(features=32)
    shapes = augreg.names_and_shapes(vit.VisionTransformer(size, 5), 16)
    arrays = {name: _as_initialised(rng, name, shape) for name, shape in shapes.items()}
    images = jnp.asarray(rng.uniform(-1, 1, (8, 16, 16, 3)), jnp.float32)
    weights: dict[str, Any] = {"mlp_weight": 0.8, "attention_weight": 0.8}
    folded = folding.fold(arrays, residual="two_minus", **weights)

    def features(arrays: Any, **options: Any) -> np.ndarray:
        params = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(arrays, sep="/"))
        model = vit.VisionTransformer(size, 5, **options)
        trunk = jax.jit(lambda params: model.apply({"params": params}, images, method="trunk"))
        with jax.numpy_dtype_promotion("standard"):  # Flax's norms mix them.
            return np.asarray(trunk(params), np.float64)

    # In float32, 0.8 and 1.2 as bfloat16 has them: the network of ratio 0.80078 to 1.20313.
    low, high = (float(np.asarray(weight, jnp.bfloat16)) for weight in (0.8, 1.2))
    ratio = {name: 2 * low / (low + high) for name in weights}
    return InBfloat16(
        features(folded),
        features(arrays, dtype="bfloat16", **weights),
        features(folded, dtype="bfloat16"),
        features(arrays, **ratio),
    )


def test_in_bfloat16_a_network_agrees_with_its_folded_one_as_with_float32(
    in_bfloat16: InBfloat16,
) -> None:
    exact, reweighted, folded, _ = in_bfloat16
    of_rounding = np.linalg.norm(folded - exact)

    # Two independent errors of that size differ by a factor of sqrt(2).
    assert np.linalg.norm(reweighted - folded) < 1.42 * of_rounding


def test_bfloat16_does_not_round_the_weights(in_bfloat16: InBfloat16) -> None:
    exact, reweighted, _, with_rounded_weights = in_bfloat16
    shift, error = with_rounded_weights - exact, reweighted - exact

    # Share of the shift by rounded weights in the error; 1 would be all of it.
    assert abs(np.vdot(shift, error) / np.vdot(shift, shift)) < 0.3

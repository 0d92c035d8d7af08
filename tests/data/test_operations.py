"""Operations of augmentation policies match torchvision's on Pillow images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from remem_jax.data.images import operations
from tests.oracles import peers

SIZE = (23, 31)  # Height and width.
# Magnitudes of each operation, among them the largest of both policies.
MAGNITUDES: dict[str, tuple[float, ...]] = {
    "Identity": (0.0,),
    "ShearX": (0.3, -0.99),
    "ShearY": (0.99, -0.3),
    "TranslateX": (7.9, -14.05),
    "TranslateY": (-3.2, 32.0),
    "Rotate": (30.0, -9.0, 135.0),
    "Brightness": (-0.99, -0.3, 0.9),
    "Color": (-0.99, -0.3, 0.9),
    "Contrast": (-0.99, -0.3, 0.9),
    "Sharpness": (-0.99, -0.3, 0.9),
    "Posterize": (2.0, 5.0, 8.0),
    "Solarize": (0.0, 110.5, 255.0),
    "AutoContrast": (0.0,),
    "Equalize": (0.0,),
}
# Pillow truncates products with another rounding: of the scale, and of 0.01 in float32.
ROUNDED = (("AutoContrast", 0.0), ("Brightness", -0.99))
CASES = [(name, value) for name, values in MAGNITUDES.items() for value in values]
KINDS = ("noise", "smooth", "dark", "flat")


def _image(kind: str) -> np.ndarray:
    """Returns noise, a smooth image, one of few grey levels, or one of a single colour."""
    rng = np.random.default_rng(0)
    if kind == "noise":
        return rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    if kind == "smooth":
        small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        return np.asarray(small.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC))
    if kind == "dark":
        return rng.integers(30, 60, (*SIZE, 3), dtype=np.uint8)
    return np.full((*SIZE, 3), (9, 200, 77), np.uint8)


@pytest.fixture(scope="module")
def results() -> dict[tuple[str, str, float], np.ndarray]:
    """The result of every case for every kind of image, computed at once."""
    images = jnp.asarray(np.stack([_image(kind) for kind in KINDS]), jnp.float32)
    names, magnitudes = zip(*CASES, strict=True)
    indices = jnp.asarray([operations.NAMES.index(name) for name in names])
    of_all = jax.vmap(operations.apply, (0, None, None))
    of_cases = jax.jit(jax.vmap(of_all, (None, 0, 0)))
    computed = np.asarray(of_cases(images, indices, jnp.asarray(magnitudes, jnp.float32)))
    return {
        (kind, *case): computed[row, column]
        for row, case in enumerate(CASES)
        for column, kind in enumerate(KINDS)
    }


def _theirs(pixels: np.ndarray, name: str, magnitude: float) -> np.ndarray:
    transforms: Any = peers.torchvision().transforms
    nearest = transforms.InterpolationMode.NEAREST
    image = Image.fromarray(pixels)
    result = transforms.autoaugment._apply_op(image, name, magnitude, nearest, None)
    return np.asarray(result, np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "magnitude"), CASES)
def test_an_operation_matches_torchvisions(
    results: dict[tuple[str, str, float], np.ndarray], kind: str, name: str, magnitude: float
) -> None:
    actual = results[kind, name, magnitude]

    differs = np.abs(actual - _theirs(_image(kind), name, magnitude))

    if name in ("ShearX", "ShearY", "Rotate"):  # Pillow rounds places to 2**-16 of a pixel.
        assert (differs > 0).any(axis=-1).mean() < 0.01
    elif (name, magnitude) in ROUNDED:
        assert differs.max() <= 1
    else:
        np.testing.assert_array_equal(differs, 0)


def test_every_operation_of_torchvision_is_there() -> None:
    autoaugment = peers.torchvision().transforms.autoaugment

    assert tuple(autoaugment.TrivialAugmentWide()._augmentation_space(31)) == operations.NAMES


@pytest.mark.parametrize("kind", KINDS)
def test_both_ways_to_count_grey_levels_agree_with_numpy(kind: str) -> None:
    levels = jnp.asarray(_image(kind)[:, :, 0], jnp.int32)

    for count in (operations._scattered, operations._compared):
        np.testing.assert_array_equal(count(levels), np.bincount(levels.ravel(), minlength=256))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_jitter_matches_torchvisions_adjustments_in_the_same_order(order: tuple[int, ...]) -> None:
    functional = peers.torchvision().transforms.functional
    adjust = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    factors = (1.3, 0.6, 1.4)
    expected = Image.fromarray(_image("smooth"))
    for index in order:
        expected = adjust[index](expected, factors[index])

    image = jnp.asarray(_image("smooth"), jnp.float32)
    actual = operations.jitter(image, jnp.asarray(factors), jnp.asarray(order))

    # XLA may round a product of floats in another way, which is one grey level at most.
    np.testing.assert_allclose(actual, np.asarray(expected, np.float32), atol=1)
    assert (np.asarray(actual) != np.asarray(expected)).mean() < 0.01

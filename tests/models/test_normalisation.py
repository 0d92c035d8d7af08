"""Networks normalise their images as torchvision does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.models.normalisation import IDENTITY, IMAGENET, Normalisation
from tests import tiny_run
from tests.oracles import peers

LITE = Normalisation(*[(value / 255, value / 255, value / 255) for value in (127, 128)])


@pytest.mark.parametrize("normalisation", [IDENTITY, IMAGENET, LITE])
def test_images_are_normalised_as_torchvision_normalises_pixels(
    rng: np.random.Generator, normalisation: Normalisation
) -> None:
    functional = peers.torchvision().transforms.functional
    pixels = rng.integers(0, 256, (2, 5, 5, 3), np.uint8)
    images = jnp.asarray(pixels, jnp.float32) / 127.5 - 1.0

    ours = normalisation(images)

    fractions = peers.torch().tensor(pixels.transpose(0, 3, 1, 2) / 255.0)
    theirs = functional.normalize(fractions, normalisation.mean, normalisation.std)
    np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), theirs, atol=2e-6)  # float32


def test_the_default_leaves_images_unchanged(rng: np.random.Generator) -> None:
    images = jnp.asarray(rng.uniform(-1, 1, (2, 5, 5, 3)), jnp.float32)

    np.testing.assert_array_equal(IDENTITY(images), images)


def test_a_student_takes_images_in_the_range_of_the_pipeline(rng: np.random.Generator) -> None:
    tiny_run.add_student()
    plain, normalising = (
        models.make(tiny_run.NAME, classes=3, normalisation=each) for each in (IDENTITY, IMAGENET)
    )
    variables = models.init(plain, jax.random.key(0), 32)
    images = jnp.asarray(rng.uniform(-1, 1, (2, 32, 32, 3)), jnp.float32)

    logits = normalising.apply(variables, images)

    np.testing.assert_array_equal(logits, plain.apply(variables, IMAGENET(images)))

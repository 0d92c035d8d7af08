"""The preprocessing of evaluation matches timm's, on the host and on the device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from remem_jax.data.images import augment, preprocessing
from remem_jax.data.images.preprocessing import Preprocessing
from tests.oracles import peers

SIZE = 24
# Height and width: wide, tall, square, odd, smaller than the models' input, extreme.
SHAPES = [(50, 70), (71, 40), (64, 64), (33, 45), (10, 13), (25, 200)]


def _image(shape: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _timms(pixels: np.ndarray, crop: float) -> np.ndarray:
    """Returns the result of timm's evaluation transform, in grey levels."""
    data: Any = peers.timm().data
    transform = data.create_transform(
        (3, SIZE, SIZE), crop_pct=crop, interpolation="bilinear", mean=(0.0,) * 3, std=(1.0,) * 3
    )
    return 255 * transform(Image.fromarray(pixels)).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("crop", [0.7, 0.875, 0.95, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_centre_crop_is_timms(shape: tuple[int, int], crop: float) -> None:
    pixels = _image(shape)

    actual = Preprocessing(SIZE, crop=crop)(pixels)

    # `decoding.resize` differs from Pillow by a grey level.
    np.testing.assert_allclose(actual.astype(np.float32), _timms(pixels, crop), atol=1.01)


@pytest.mark.parametrize("crop", [0.0, 0.875])
@pytest.mark.parametrize("shape", SHAPES)
def test_stored_images_get_the_same_on_the_device(shape: tuple[int, int], crop: float) -> None:
    steps, pixels = Preprocessing(SIZE, crop=crop), _image(shape)

    inputs = augment.make_evaluation_transform(steps)(jax.random.key(0), jnp.asarray(pixels[None]))

    levels = (np.asarray(inputs[0]) + 1) * 127.5
    np.testing.assert_allclose(levels, steps(pixels), atol=1.01)


def test_without_a_crop_the_whole_image_is_used() -> None:
    assert Preprocessing(SIZE).box(50, 70) == (0, 0, 70, 50)


def test_resized_images_are_cropped_from_their_files() -> None:
    of_data = preprocessing.of_data(SIZE, resized=True, source_size=(64, 64), crop=0.875)

    assert of_data == Preprocessing(SIZE, 0, 0.875)


def test_results_of_earlier_versions_have_no_crop() -> None:
    record = {"image_size": SIZE, "stored_size": 64}
    results: dict[str, Any] = {"data": {"image_size": SIZE, "preprocessing": record}}

    assert preprocessing.of_results(results) == Preprocessing(SIZE, 64)


def test_results_record_the_crop() -> None:
    steps = Preprocessing(SIZE, crop=0.95)
    results: dict[str, Any] = {"data": {"image_size": SIZE, "preprocessing": steps.record()}}

    assert preprocessing.of_results(results) == steps

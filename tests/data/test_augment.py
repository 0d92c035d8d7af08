"""Training and evaluation transforms, compared with Pillow and with closed forms."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from remem_jax import random_streams
from remem_jax.data.images import augment
from remem_jax.data.images.augment import Mixing
from remem_jax.data.images.boxes import Boxes
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.records import Key
from tests.oracles import peers

HEIGHT, WIDTH = 11, 17
# (top, left, height, width): the whole image, its corners, a strip, less than a pixel.
BOXES = [
    (0.0, 0.0, 11.0, 17.0),
    (1.5, 2.25, 4.5, 3.75),
    (7.2, 12.3, 3.8, 4.7),
    (0.0, 0.0, 2.5, 17.0),
    (3.1, 5.9, 0.7, 0.6),
]
SIZES = [3, 11, 40]  # Smaller than most boxes, about as large, larger.
# A float32 position among 17 pixels is known to 1e-6; the steepest slope is 255 per pixel.
TOLERANCE = 1e-3


@pytest.fixture
def images(rng: np.random.Generator) -> np.ndarray:
    """Noise: images with the steepest possible gradients."""
    return rng.integers(0, 256, (2, HEIGHT, WIDTH, 3), dtype=np.uint8)


def _boxes(*box: float) -> Boxes:
    return Boxes(*(jnp.full((2,), edge, jnp.float32) for edge in box))


def _pillow(images: np.ndarray, size: int, box: tuple[float, ...] | None) -> np.ndarray:
    """Resizes with Pillow in mode "F", one channel at a time."""
    if box is not None:
        top, left, height, width = np.asarray(box, np.float32).tolist()
        box = (left, top, min(left + width, WIDTH), min(top + height, HEIGHT))

    def channel(values: np.ndarray) -> np.ndarray:
        image = Image.fromarray(values.astype(np.float32))
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))

    planes = [[channel(image[:, :, c]) for c in range(3)] for image in images]
    return np.moveaxis(np.asarray(planes), 1, -1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("box", BOXES)
def test_crop_and_resize_matches_pillow(
    images: np.ndarray, box: tuple[float, ...], size: int
) -> None:
    actual = augment.crop_and_resize(jnp.asarray(images), _boxes(*box), size)

    np.testing.assert_allclose(actual, _pillow(images, size, box), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
def test_the_evaluation_transform_matches_pillow(images: np.ndarray, size: int) -> None:
    transform = augment.make_evaluation_transform(Preprocessing(size))

    actual = (transform(jax.random.key(0), jnp.asarray(images)) + 1) * 127.5

    np.testing.assert_allclose(actual, _pillow(images, size, None), rtol=0, atol=TOLERANCE)


def test_each_image_gets_its_own_box(images: np.ndarray) -> None:
    boxes = Boxes(*(jnp.asarray(edge) for edge in zip(BOXES[1], BOXES[2], strict=True)))

    actual = augment.crop_and_resize(jnp.asarray(images), boxes, 5)

    expected = [_pillow(images[i : i + 1], 5, BOXES[i + 1])[0] for i in range(2)]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("pixel", "value"), [(0, -1.0), (51, -0.6), (255, 1.0)])
def test_pixels_are_mapped_linearly_to_minus_one_to_one(pixel: int, value: float) -> None:
    actual = augment.to_model_range(jnp.asarray([pixel], jnp.uint8))

    np.testing.assert_allclose(actual, [value], atol=1e-6)


def test_model_range_is_float32() -> None:
    assert augment.to_model_range(jnp.zeros((1,), jnp.uint8)).dtype == jnp.float32


@pytest.mark.parametrize(("pixel", "value"), [(0, -1.0), (255, 1.0)])
@pytest.mark.parametrize(
    "transform",
    [
        augment.make_train_transform(size=5, crop_area=(0.2, 0.9), flip=True),
        augment.make_train_transform(size=5, crop_area=(1.0, 1.0), flip=False),
        augment.make_evaluation_transform(Preprocessing(5)),
    ],
    ids=["train", "train without crops", "evaluation"],
)
def test_black_is_minus_one_and_white_is_one_in_every_transform(
    transform: Callable[..., jax.Array], pixel: int, value: float, key: Key
) -> None:
    images = jnp.full((3, HEIGHT, WIDTH, 3), pixel, jnp.uint8)

    actual = transform(key, images)

    # The weights of a pixel sum to 1 in float32.
    np.testing.assert_allclose(actual, jnp.full((3, 5, 5, 3), value), atol=1e-5)


def test_evaluation_transform_does_not_depend_on_the_key(images: np.ndarray, key: Key) -> None:
    transform = augment.make_evaluation_transform(Preprocessing(5))

    np.testing.assert_array_equal(
        transform(key, jnp.asarray(images)),
        transform(jax.random.fold_in(key, 1), jnp.asarray(images)),
    )


def test_training_crop_of_the_whole_image_equals_the_evaluation_transform(
    images: np.ndarray, key: Key
) -> None:
    train = augment.make_train_transform(size=5, crop_area=(1.0, 1.0), flip=False)
    evaluation = augment.make_evaluation_transform(Preprocessing(5))

    np.testing.assert_array_equal(
        train(key, jnp.asarray(images)), evaluation(key, jnp.asarray(images))
    )


def test_equal_keys_give_equal_augmentations(images: np.ndarray, key: Key) -> None:
    transform = augment.make_train_transform(size=5, crop_area=(0.1, 1.0), flip=True)

    np.testing.assert_array_equal(
        transform(key, jnp.asarray(images)), transform(key, jnp.asarray(images))
    )


def test_different_keys_give_different_augmentations(images: np.ndarray, key: Key) -> None:
    transform = augment.make_train_transform(size=5, crop_area=(0.1, 1.0), flip=True)

    first, second = (transform(k, jnp.asarray(images)) for k in jax.random.split(key))

    assert not np.allclose(first, second)


def test_images_of_a_batch_are_cropped_differently(images: np.ndarray, key: Key) -> None:
    twice = jnp.asarray(images[[0, 0]])

    transform = augment.make_train_transform(size=5, crop_area=(0.1, 0.5), flip=False)(key, twice)

    assert not np.allclose(transform[0], transform[1])


def _mirrored(key: Key, flip: bool) -> np.ndarray:
    """Returns which of 400 copies of a two-pixel image (dark, light) are mirrored."""
    images = jnp.broadcast_to(jnp.asarray([0, 255], jnp.uint8)[:, None], (400, 1, 2, 3))
    transform = jax.jit(augment.make_train_transform(size=2, crop_area=(1.0, 1.0), flip=flip))
    transformed = np.asarray(transform(key, images))
    return transformed[:, 0, 0, 0] > transformed[:, 0, 1, 0]


def test_half_of_the_images_are_mirrored(key: Key) -> None:
    count = _mirrored(key, flip=True).sum()

    assert stats.binomtest(int(count), 400, 0.5).pvalue > 1e-3


def test_no_image_is_mirrored_if_flipping_is_off(key: Key) -> None:
    assert not _mirrored(key, flip=False).any()


@pytest.mark.parametrize("size", SIZES)
def test_mirroring_only_swaps_left_and_right(images: np.ndarray, key: Key, size: int) -> None:
    many = jnp.asarray(images[[0] * 16])
    plain, flipped = (
        jax.jit(augment.make_train_transform(size=size, crop_area=(1.0, 1.0), flip=flip))(key, many)
        for flip in (False, True)
    )

    alike = np.all(np.abs(flipped - plain) < 1e-5, axis=(1, 2, 3))
    mirrored = np.all(np.abs(flipped - plain[:, :, ::-1]) < 1e-5, axis=(1, 2, 3))
    assert alike.any()
    assert mirrored.any()
    assert (alike ^ mirrored).all()


# Mixup.


def test_mixup_mixes_each_image_with_the_previous_one() -> None:
    values = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [4.0, 8.0]])

    actual = augment.mix(values, jnp.asarray(0.75))

    before = np.asarray(values)[[2, 0, 1]]
    np.testing.assert_allclose(actual, 0.75 * np.asarray(values) + 0.25 * before, rtol=1e-6)


def test_mixup_mixes_images_and_labels_with_the_same_weights(images: np.ndarray, key: Key) -> None:
    share = augment.mixup_share(key, 0.8)
    classes = jnp.eye(2)

    mixed = augment.mix(jnp.asarray(images, jnp.float32), share)
    targets = np.asarray(augment.mix(classes, share))

    expected = np.tensordot(targets, images.astype(np.float32), axes=1)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.2, 0.8])
def test_mixup_weights_are_folded_beta_distributed(key: Key, alpha: float) -> None:
    draw = jax.jit(jax.vmap(lambda key: augment.mixup_share(key, alpha)))

    shares = np.asarray(draw(jax.random.split(key, 1000)), np.float64)

    beta = stats.beta(alpha, alpha)
    folded = lambda x: beta.cdf(x) - beta.cdf(1 - x)  # noqa: E731
    assert stats.kstest(shares, folded).pvalue > 1e-3


# CutMix.


@pytest.mark.parametrize("share", [0.01, 0.35, 0.8, 0.99])
def test_the_box_and_share_of_cutmix_are_timms(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers.timm()
    from timm.data import mixup

    for row, column in ((0, 0), (5, 9), (10, 16)):
        centers = iter((row, column))
        monkeypatch.setattr(np.random, "randint", lambda *_, size, centers=centers: next(centers))
        box, expected = mixup.cutmix_bbox_and_lam((2, 3, HEIGHT, WIDTH), share)

        inside, actual = augment.cutmix_box(
            HEIGHT, WIDTH, jnp.asarray(share), jnp.asarray(row), jnp.asarray(column)
        )

        top, bottom, left, right = box
        pixels = np.zeros((HEIGHT, WIDTH), bool)
        pixels[top:bottom, left:right] = True
        np.testing.assert_array_equal(inside, pixels)
        assert float(actual) == pytest.approx(expected, abs=1e-6)


def test_cutmix_pastes_the_previous_image_and_mixes_labels_by_area(
    images: np.ndarray, key: Key
) -> None:
    pixels = jnp.asarray(images, jnp.float32)

    mixed, share = augment.mix_images(pixels, key, Mixing(cutmix=1.0))

    before = np.asarray(jnp.roll(pixels, 1, axis=0))
    pasted = (np.asarray(mixed) == before).all(-1)
    assert (pasted | (np.asarray(mixed) == images).all(-1)).all()
    # Noise is never equal by chance.
    np.testing.assert_allclose(1 - pasted.mean(axis=(1, 2)), share, rtol=1e-6)
    labels = np.asarray(augment.mix(jnp.eye(2), share))
    np.testing.assert_allclose(labels[0], [share, 1 - share], rtol=1e-6)


def test_shares_of_cutmix_are_distributed_as_timms(key: Key) -> None:
    timm_mixup = peers.timm().data.mixup.Mixup
    theirs = timm_mixup(mixup_alpha=0.0, cutmix_alpha=1.0, num_classes=2)
    torch = peers.torch()
    np.random.seed(0)  # noqa: NPY002 - timm draws from it.
    expected = [theirs._mix_batch(torch.zeros(2, 1, HEIGHT, WIDTH)) for _ in range(1000)]

    draw = jax.jit(
        jax.vmap(lambda k: augment.mix_images(jnp.zeros((2, HEIGHT, WIDTH, 1)), k, Mixing(0, 1))[1])
    )
    actual = np.asarray(draw(jax.random.split(key, 1000)))

    assert stats.ks_2samp(actual, expected).pvalue > 1e-3


def test_with_both_half_of_the_batches_get_cutmix(images: np.ndarray, key: Key) -> None:
    pixels = jnp.asarray(images, jnp.float32)
    mix = jax.jit(jax.vmap(lambda k: augment.mix_images(pixels, k, Mixing(0.8, 1.0))))

    mixed, shares = (np.asarray(each) for each in mix(jax.random.split(key, 400)))

    before = np.roll(images, 1, axis=0)
    pasted = ((mixed == images) | (mixed == before)).all(axis=(1, 2, 3, 4))
    assert stats.binomtest(int(pasted.sum()), 400, 0.5).pvalue > 1e-3
    blended = shares[~pasted][:, None, None, None, None]
    expected = blended * images + (1 - blended) * before
    np.testing.assert_allclose(mixed[~pasted], expected, atol=1e-3)


def test_mixup_alone_draws_the_same_with_or_without_the_setting_of_cutmix(
    images: np.ndarray, key: Key
) -> None:
    pixels = jnp.asarray(images, jnp.float32)
    share = augment.mixup_share(random_streams.within(key, "mixup"), 0.8)

    mixed, actual = augment.mix_images(pixels, key, Mixing(mixup=0.8))

    np.testing.assert_array_equal(actual, share)
    np.testing.assert_array_equal(mixed, augment.mix(pixels, share))

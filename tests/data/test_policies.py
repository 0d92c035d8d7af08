"""Policies, colour jitter and erasing, compared with torchvision and timm."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from remem_jax import mesh, random_streams
from remem_jax.data.images import augment, operations, policies
from remem_jax.data.images.policies import Changes
from remem_jax.records import Key, Transform
from tests.oracles import peers

SIZE = 12
EVERY = [
    Changes("trivial"),
    Changes("rand", 2, 9),
    Changes(jitter=0.4),
    Changes(erasing=0.9),
    Changes("trivial", jitter=0.4, erasing=0.9),
]
NAMES = ["trivial", "rand", "jitter", "erasing", "all"]


@pytest.fixture
def images(rng: np.random.Generator) -> jax.Array:
    """Eight images of noise."""
    return jnp.asarray(rng.integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8))


def _extended(changes: Changes, base: Transform = augment.streamed_transform) -> Transform:
    return jax.jit(policies.extended(base, changes))


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_magnitudes_are_torchvisions(policy: str) -> None:
    autoaugment: Any = peers.torchvision().transforms.autoaugment
    if policy == "rand":
        space = autoaugment.RandAugment()._augmentation_space(31, (40, 64))
    else:
        space = autoaugment.TrivialAugmentWide()._augmentation_space(31)

    table, signed = policies.magnitude_table(policy, 40, 64)

    for i, name in enumerate(operations.NAMES):
        magnitudes, has_sign = space[name]
        np.testing.assert_allclose(table[i], np.broadcast_to(magnitudes, 31), rtol=1e-6)
        assert signed[i] == has_sign


def test_without_changes_the_transform_is_the_same_function() -> None:
    assert policies.extended(augment.streamed_transform, Changes()) is augment.streamed_transform


@pytest.mark.parametrize("changes", EVERY, ids=NAMES)
def test_changes_depend_on_the_key_alone(changes: Changes, images: jax.Array, key: Key) -> None:
    transform = _extended(changes)

    first, again, other = (
        transform(random_streams.within(key, step), images) for step in (0, 0, 1)
    )

    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.abs(first).max() <= 1 + 1e-6


@pytest.mark.parametrize("changes", EVERY, ids=NAMES)
def test_resident_and_streamed_images_get_the_same_changes(
    changes: Changes, images: jax.Array, key: Key
) -> None:
    resident = augment.make_train_transform(size=SIZE, crop_area=(1.0, 1.0), flip=False)

    first, second = (
        _extended(changes, base)(key, images) for base in (resident, augment.streamed_transform)
    )

    np.testing.assert_allclose(first, second, atol=1e-5)


def test_images_of_a_batch_are_changed_differently(images: jax.Array, key: Key) -> None:
    same = jnp.broadcast_to(images[:1], images.shape)

    changed = np.asarray(_extended(Changes(jitter=0.4))(key, same))

    assert len(np.unique(changed.reshape(8, -1), axis=0)) == 8


def test_trivial_augment_draws_operations_magnitudes_and_signs_uniformly(
    monkeypatch: pytest.MonkeyPatch, key: Key
) -> None:
    def drawn(image: jax.Array, operation: jax.Array, magnitude: jax.Array) -> jax.Array:
        return jnp.stack([operation.astype(jnp.float32), magnitude]).reshape(1, 2, 1)

    monkeypatch.setattr(operations, "apply", drawn)
    draws = policies.apply_policy(key, jnp.zeros((20_000, 1, 2, 1)), Changes("trivial"))

    which, magnitudes = np.asarray(draws)[:, 0, :, 0].T
    assert stats.chisquare(np.bincount(which.astype(int))).pvalue > 1e-3
    rotations = magnitudes[which == operations.NAMES.index("Rotate")]
    bins = np.round(rotations / 135 * 30).astype(int) + 30
    expected = np.full(61, len(rotations) / 62)
    expected[30] *= 2  # Zero has no sign.
    assert stats.chisquare(np.bincount(bins, minlength=61), expected).pvalue > 1e-3


def test_rand_augment_applies_its_operations_one_after_another(images: jax.Array, key: Key) -> None:
    changes = Changes("rand", operations=3, magnitude=5)
    pixels = images.astype(jnp.float32)
    which_key, _, sign_key = jax.random.split(key, 3)
    which = jax.random.randint(which_key, (3, 8), 0, len(operations.NAMES))
    signs = jax.random.bernoulli(sign_key, shape=(3, 8))
    table, signed = policies.magnitude_table("rand", SIZE, SIZE)

    apply, expected = jax.jit(jax.vmap(operations.apply)), pixels
    for i in range(3):
        magnitude = jnp.asarray(table)[which[i], 5]
        magnitude = jnp.where(signs[i] & jnp.asarray(signed)[which[i]], -magnitude, magnitude)
        expected = apply(expected, which[i], magnitude)

    actual = jax.jit(lambda pixels: policies.apply_policy(key, pixels, changes))(pixels)
    np.testing.assert_array_equal(actual, expected)


def test_factors_of_jitter_are_uniform_and_every_order_occurs(
    monkeypatch: pytest.MonkeyPatch, key: Key
) -> None:
    def drawn(image: jax.Array, factors: jax.Array, order: jax.Array) -> jax.Array:
        return jnp.stack([factors, order.astype(jnp.float32)])[None]

    monkeypatch.setattr(operations, "jitter", drawn)

    draws = np.asarray(policies.jitter(key, jnp.zeros((6000, 1, 2, 3)), 0.4))[:, 0]

    for factor in draws[:, 0].T:
        assert stats.kstest(factor, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3
    _, counts = np.unique(draws[:, 1], axis=0, return_counts=True)
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-3


def test_strong_jitter_has_no_negative_factors(monkeypatch: pytest.MonkeyPatch, key: Key) -> None:
    monkeypatch.setattr(operations, "jitter", lambda image, factors, order: factors[None, None])

    factors = policies.jitter(key, jnp.zeros((500, 1, 1, 3)), 1.5)

    assert np.asarray(factors).min() >= 0


def test_erased_areas_are_distributed_as_timms(key: Key) -> None:
    peers.timm()
    from timm.data.random_erasing import RandomErasing

    torch, count, probability = peers.torch(), 2000, 0.7
    theirs = torch.ones(count, 1, 24, 32)
    RandomErasing(probability, device="cpu")(theirs)
    expected = (theirs == 0).numpy()[:, 0]

    actual = np.asarray(policies.erased_pixels(key, (count, 24, 32), probability))

    assert stats.ks_2samp(actual.sum((1, 2)), expected.sum((1, 2))).pvalue > 1e-3
    for axis in (1, 2):  # Heights and widths; and how often each row and column is erased.
        sides = [erased.any(axis).sum(1) for erased in (actual, expected)]
        assert stats.ks_2samp(*sides).pvalue > 1e-3
        often = [erased.any(axis).mean(0) for erased in (actual, expected)]
        np.testing.assert_allclose(*often, atol=0.06)


def test_erased_pixels_are_grey(images: jax.Array, key: Key) -> None:
    plain = augment.streamed_transform(key, images)

    erased = np.asarray(_extended(Changes(erasing=1.0))(key, images))

    changed = np.abs(erased - plain) > 1e-6
    assert changed.any(axis=(1, 2, 3)).all()
    np.testing.assert_array_equal(erased[changed], 0)


def test_changes_need_no_communication_between_devices(images: jax.Array, key: Key) -> None:
    sharding = mesh.batch_sharding(mesh.make_mesh(jax.devices()[:2]))
    transform = policies.extended(augment.streamed_transform, EVERY[-1])
    shards = jax.device_put(images, sharding)

    compiled = jax.jit(transform, out_shardings=sharding).lower(key, shards).compile()

    assert not re.search(r"all-gather|all-to-all|all-reduce|collective", compiled.as_text() or "")
    expected = _extended(EVERY[-1])(key, images)
    np.testing.assert_allclose(compiled(key, shards), expected, atol=1e-6)

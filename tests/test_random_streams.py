"""Named random streams: they match the documentation and are all different."""

import itertools
import pathlib
import re
import typing
import zlib
from typing import Any

import jax
import numpy as np
import pytest

from remem_jax import random_streams

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "reproducibility.md"
NAMES = {*typing.get_args(random_streams.Stage), *typing.get_args(random_streams.Use)}
NUMBERS = (0, 1, 2**31 - 1)  # The first and last steps, epochs and seeds.


def _streams() -> list[str]:
    """Returns the streams that the page lists."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text(), flags=re.MULTILINE)
    return re.findall(r"`(.+?)`", " ".join(rows))


def _paths() -> list[tuple[Any, ...]]:
    """Returns the paths of all streams for a few steps, epochs and seeds."""
    paths: list[tuple[Any, ...]] = []
    for stream in _streams():
        parts = [NUMBERS if part.isupper() else (part,) for part in stream.split("/")]
        paths += itertools.product(*parts)
    return paths


def _words(keys: list[jax.Array]) -> np.ndarray:
    return np.stack([jax.random.key_data(key) for key in keys])


def test_the_page_lists_every_name_and_no_other() -> None:
    parts = {part for stream in _streams() for part in stream.split("/")}

    assert {part for part in parts if not part.isupper()} == NAMES


def test_no_two_streams_share_a_key() -> None:
    keys = [random_streams.key(seed, *path) for seed in (0, 1) for path in _paths()]

    assert len(np.unique(_words(keys), axis=0)) == len(keys) == 2 * len(set(_paths()))


def test_no_two_streams_share_a_generator() -> None:
    draws = [
        random_streams.generator(seed, *path).integers(2**63)
        for seed in (0, 1)
        for path in _paths()
    ]

    assert len(set(draws)) == len(draws) == 2 * len(set(_paths()))


def test_a_key_is_folded_with_the_number_of_each_part_of_the_name() -> None:
    expected = jax.random.key(3)
    for part in (zlib.crc32(b"student") | 2**31, 7, zlib.crc32(b"crops") | 2**31):
        expected = jax.random.fold_in(expected, part)

    for actual in (
        random_streams.key(3, "student", 7, "crops"),
        random_streams.within(random_streams.key(3, "student"), 7, "crops"),
        jax.jit(lambda seed, step: random_streams.key(seed, "student", step, "crops"))(3, 7),
    ):
        np.testing.assert_array_equal(_words([actual]), _words([expected]))


def test_a_generator_is_spawned_with_the_number_of_each_part_of_the_name() -> None:
    parts = (zlib.crc32(b"student") | 2**31, 7, zlib.crc32(b"crops") | 2**31)
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3, spawn_key=parts)))

    actual = random_streams.generator(3, "student", 7, "crops")

    np.testing.assert_array_equal(actual.random(9), expected.random(9))


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_number_of_a_name_differs_from_all_steps(name: str) -> None:
    assert 2**31 <= random_streams._number(name) < 2**32


def test_a_stream_without_a_number_differs_from_number_0() -> None:
    unnumbered, numbered = (random_streams.generator(0, "student", *rest) for rest in ((), (0,)))

    assert unnumbered.integers(2**63) != numbered.integers(2**63)


def _noisy(*, key: jax.Array) -> Any:
    return lambda image, scale: image + scale * jax.random.normal(key, image.shape)


def test_a_jitted_function_draws_from_its_key() -> None:
    key, image = random_streams.key(3, "teacher"), np.zeros(4, np.float32)

    drawn = random_streams.JitWithKey(_noisy, key)(image, scale=2.0)

    np.testing.assert_array_equal(drawn, jax.jit(_noisy(key=key))(image, 2.0))


def test_all_keys_share_one_compiled_function() -> None:
    jitted = [random_streams.JitWithKey(_noisy, random_streams.key(seed)) for seed in (0, 1)]
    first, second = (function.lower(np.zeros(4), 1.0).as_text() for function in jitted)

    assert first == second
    assert jax.jit(_noisy(key=random_streams.key(0))).lower(np.zeros(4), 1.0).as_text() != first


def test_a_jitted_function_donates_its_own_arguments() -> None:
    jitted = random_streams.JitWithKey(_noisy, random_streams.key(0), donate_argnums=(0,))
    image = jax.numpy.zeros(4)

    jitted(image, 1.0)

    assert image.is_deleted()

"""The bound of Proposition 5.4, against its closed form and the example of its docstring."""

import doctest
import math

import pytest

from remem_jax.analysis import bound


def test_the_example_is_right() -> None:
    failed, attempted = doctest.testmod(bound)

    assert (failed, attempted) == (0, 1)


def test_the_bound_of_one_expert_is_the_bits_of_its_neurons() -> None:
    assert bound.information_bits(experts=1, active_neurons=3072, bits=32) == 3072 * 32


def test_experts_without_neurons_carry_the_bits_of_their_index() -> None:
    assert bound.information_bits(experts=8, active_neurons=0, bits=32) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"experts": 0}, "experts must be at least 1, got 0"),
        ({"active_neurons": -1.0}, "active_neurons must be at least 0"),
        ({"bits": 0}, "bits must be above 0"),
        ({"bits": math.nan}, "bits must be above 0"),
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, float], message: str) -> None:
    arguments = {"experts": 2, "active_neurons": 1.0, "bits": 32, **wrong}

    with pytest.raises(ValueError, match=message):
        bound.information_bits(**arguments)  # pyright: ignore[reportArgumentType]

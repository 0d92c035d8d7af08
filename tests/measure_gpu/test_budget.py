"""The division of a measurement's time, tested with a clock that the tests advance."""

import pytest

from tools.gpu.budget import Budget, Item

SHARES = {"numerics": 0.25, "speed": 0.5, "table10": 0.25}


class Clock:
    """A clock that the tests advance."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> Budget:
    """A budget of 100 seconds whose sections end at 25, 75 and 100."""
    return Budget(100.0, SHARES, clock)


def item(section: str, limit: float = 60.0, least: float = 5.0) -> Item:
    return Item("one", section, "no:thing", {}, limit, least)


def test_an_item_may_take_its_limit_if_its_section_has_more(budget: Budget) -> None:
    assert budget.allowed(item("speed", limit=30.0), whole=False) == 30.0


def test_an_item_ends_with_its_section(budget: Budget, clock: Clock) -> None:
    clock.now += 10.0
    assert budget.allowed(item("numerics"), whole=False) == 15.0


def test_unused_time_of_a_section_goes_to_the_next(budget: Budget, clock: Clock) -> None:
    clock.now += 10.0
    assert budget.allowed(item("speed", limit=90.0), whole=False) == 65.0


def test_an_item_is_not_started_if_too_little_time_is_left(budget: Budget, clock: Clock) -> None:
    clock.now += 20.0
    assert budget.allowed(item("numerics", least=5.0), whole=False) == 5.0
    assert budget.allowed(item("numerics", least=5.1), whole=False) == 0.0


def test_at_the_end_an_item_may_take_all_remaining_time(budget: Budget, clock: Clock) -> None:
    clock.now += 80.0
    assert budget.allowed(item("numerics"), whole=False) == 0.0
    assert budget.allowed(item("numerics"), whole=True) == 20.0

"""How the time of a measurement is divided, by a clock that stands still until it is moved."""

import pytest

from tools.gpu.budget import Budget, Item

SHARES = {"numerics": 0.25, "speed": 0.5, "table10": 0.25}


class Clock:
    """A clock that is moved by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def budget(clock: Clock) -> Budget:
    """100 seconds: sections end at 25, 75 and 100."""
    return Budget(100.0, SHARES, clock)


def item(section: str, limit: float = 60.0, least: float = 5.0) -> Item:
    return Item("one", section, "no:thing", {}, limit, least)


def test_an_item_may_take_its_limit_where_its_section_has_more(budget: Budget) -> None:
    assert budget.allowed(item("speed", limit=30.0), whole=False) == 30.0


def test_an_item_ends_with_its_section(budget: Budget, clock: Clock) -> None:
    clock.now += 10.0
    assert budget.allowed(item("numerics"), whole=False) == 15.0


def test_what_a_section_leaves_is_for_the_next(budget: Budget, clock: Clock) -> None:
    clock.now += 10.0
    assert budget.allowed(item("speed", limit=90.0), whole=False) == 65.0


def test_an_item_is_not_started_where_too_little_is_left(budget: Budget, clock: Clock) -> None:
    clock.now += 20.0
    assert budget.allowed(item("numerics", least=5.0), whole=False) == 5.0
    assert budget.allowed(item("numerics", least=5.1), whole=False) == 0.0


def test_in_the_end_an_item_may_take_all_that_is_left(budget: Budget, clock: Clock) -> None:
    clock.now += 80.0
    assert budget.allowed(item("numerics"), whole=False) == 0.0
    assert budget.allowed(item("numerics"), whole=True) == 20.0

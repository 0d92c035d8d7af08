"""What a user is shown of the log."""

import asyncio
import gc
import logging as python_logging

import pytest
from absl import logging

from remem_jax import main


@pytest.fixture
def shown() -> list[str]:
    """What passes the filter of the log, of all that loggers say."""
    return []


@pytest.fixture(autouse=True)
def handler(shown: list[str]) -> object:
    class Shown(python_logging.Handler):
        def emit(self, record: python_logging.LogRecord) -> None:
            shown.append(record.getMessage())

    added = Shown()
    added.addFilter(main._is_ours)
    python_logging.getLogger().addHandler(added)
    yield added
    python_logging.getLogger().removeHandler(added)


async def _leave_a_failed_write() -> None:
    asyncio.get_running_loop().create_future().set_exception(OSError("no room"))
    gc.collect()


def test_writes_that_fail_unheard_are_not_shown(shown: list[str]) -> None:
    asyncio.run(_leave_a_failed_write())

    assert shown == []


def test_what_else_asyncio_says_is_shown(shown: list[str]) -> None:
    python_logging.getLogger("asyncio").error("something else")

    assert shown == ["something else"]


def test_our_own_messages_are_shown(shown: list[str]) -> None:
    logging.warning("ours")

    assert "ours" in shown

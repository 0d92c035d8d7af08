"""When a worker fetches the copy of a trial, and when its own folder counts."""

import pathlib

import pytest

from remem_jax.storage import locks
from remem_jax.study import copies


class Machine:
    """A folder of trials and the copies that it has in common with others."""

    def __init__(self, path: pathlib.Path) -> None:
        self.trial = path / "trials" / "key"
        self._copies = copies.open_copies(str(path.parent / "store"))

    def work(self, *, lost: bool = False, **files: str) -> dict[str, str]:
        """Writes files in a trial; returns those that it began with."""
        with self._copies.of((self.trial, None), lambda: lost):
            found = self.read()
            self.trial.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (self.trial / name).write_text(text)
        return found

    def read(self) -> dict[str, str]:
        paths = self.trial.iterdir() if self.trial.is_dir() else ()
        files = (path for path in paths if path.is_file() and path.name != "copy.json")
        return {path.name: path.read_text() for path in files}


@pytest.fixture
def first(tmp_path: pathlib.Path) -> Machine:
    return Machine(tmp_path / "first")


@pytest.fixture
def second(tmp_path: pathlib.Path) -> Machine:
    return Machine(tmp_path / "second")


def test_a_trial_goes_back_and_forth_between_machines(first: Machine, second: Machine) -> None:
    assert first.work(one="1") == {}
    assert second.work(two="2") == {"one": "1"}
    assert first.work() == {"one": "1", "two": "2"}


def test_a_folder_that_was_copied_last_is_not_replaced(first: Machine, second: Machine) -> None:
    first.work(one="1")
    (first.trial / "one").unlink()

    assert first.work() == {}


def test_a_folder_that_is_as_far_is_not_replaced(first: Machine, second: Machine) -> None:
    first.work(one="first")
    second.trial.mkdir(parents=True)
    (second.trial / "one").write_text("second")

    assert second.work() == {"one": "second"}


def test_a_folder_in_use_is_not_replaced(first: Machine, second: Machine) -> None:
    first.work(one="1")
    below = second.trial / "float32"
    below.mkdir(parents=True)

    with locks.held(below / "lock"):
        second.work()

    assert not (second.trial / "one").exists()


def test_a_worker_that_lost_its_trial_copies_nothing(first: Machine, second: Machine) -> None:
    first.work(one="1", lost=True)

    assert second.work() == {}

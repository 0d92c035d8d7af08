"""When a worker fetches the copy of a trial, and when its own folder counts."""

import contextlib
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from remem_jax.storage import artifacts, locks
from remem_jax.study import copies


class Machine:
    """A folder of trials and the copies that it has in common with others."""

    def __init__(self, path: pathlib.Path) -> None:
        self.trial = path / "trials" / "key"
        self.copies = copies.open_copies(str(path.parent / "store"))

    def work(self, *, lost: bool = False, **files: str) -> dict[str, str]:
        """Writes files in a trial; returns those that it began with."""
        with self.copies.of((self.trial, None), lambda: lost):
            found = self.read()
            self.write(**files)
        return found

    def write(self, **files: str) -> None:
        self.trial.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.trial / name).write_text(text)

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
    second.write(one="second")

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


def test_two_workers_of_a_machine_fetch_a_copy_one_after_the_other(
    first: Machine, second: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first.work(a="a", b="b", c="c", d="d")
    get, meet, fetched = artifacts.Store._get, threading.Barrier(2, timeout=1.0), []

    def slow(*args: Any) -> None:
        fetched.append(args)
        with contextlib.suppress(threading.BrokenBarrierError):
            meet.wait()  # If both fetch at once, both get here.
        get(*args)

    monkeypatch.setattr(artifacts.Store, "_get", slow)
    others = [Machine(second.trial.parents[1]) for _ in range(2)]
    threads = [threading.Thread(target=other.work) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(fetched) == 1
    assert second.read() == {name: name for name in "abcd"}
    assert [path.name for path in second.trial.parent.iterdir()] == ["key"]


def failing(times: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of a storage that fails in its first calls."""
    left = [artifacts.StoreError("the storage is down")] * times

    def call(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return function(*args, **kwargs)

    return call


def test_a_final_copy_that_failed_is_made_at_the_end(
    first: Machine, second: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "POLL_SECONDS", 0.01)
    first.write(one="1")
    monkeypatch.setattr(artifacts.Store, "push", failing(3, artifacts.Store.push))

    with first.copies:
        first.copies.conclude(first.trial)
        assert second.work() == {}

    assert second.work() == {"one": "1"}


def test_a_final_copy_that_cannot_be_made_is_named(
    first: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(copies, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(copies, "_END_SECONDS", 0.1)
    first.write(one="1")
    monkeypatch.setattr(artifacts.Store, "push", failing(1000, artifacts.Store.push))

    with first.copies:
        first.copies.conclude(first.trial)

    assert f"There is no final copy of {first.trial}: keep this folder." in caplog.text


def test_a_final_copy_waits_for_a_slow_one(
    first: Machine, second: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "_END_SECONDS", 0.1)
    push, began, go_on = artifacts.Store.push, threading.Event(), threading.Event()

    def slow(self: artifacts.Store, folder: pathlib.Path, name: str, *, final: bool) -> str:
        if not began.is_set():
            began.set()
            go_on.wait(10)
        return push(self, folder, name, final=final)

    monkeypatch.setattr(artifacts.Store, "push", slow)
    first.work(one="1", two="2")
    assert began.is_set()
    concluding = threading.Thread(target=first.copies.conclude, args=(first.trial,))
    concluding.start()
    concluding.join(0.5)
    go_on.set()
    for thread in (concluding, *threading.enumerate()):
        if thread is concluding or thread.name.startswith("copy "):
            thread.join()

    assert second.work() == {"one": "1", "two": "2"}
    assert list(first.trial.parents[2].glob("store/trials/key/final.json"))

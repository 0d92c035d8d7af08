"""Items are measured in order and in time, and results are kept whatever happens."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tools.gpu import record, running, worker
from tools.gpu.budget import Budget, Item

Message = tuple[float, tuple[str, Any]]  # Seconds until it is sent, and its content.
DONE = (worker.DONE, {"found": 1})
PARTIAL = (worker.PARTIAL, {"found": 0})


class Clock:
    """A clock that only waiting advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A worker that sends the scripted messages of each item; without a script it hangs."""

    def __init__(self, script: Mapping[str, Sequence[Message]], clock: Clock) -> None:
        self._script, self._clock = script, clock
        self._pending: list[Message] = []
        self.killed = False

    def begin(self, item: Item, seconds: float) -> None:
        del seconds
        assert not self.killed
        self._pending = list(self._script.get(item.name, ()))

    def hear(self, seconds: float) -> tuple[str, Any] | None:
        if self._pending and self._pending[0][0] <= seconds:
            after, message = self._pending.pop(0)
            self._clock.now += after
            return message
        if self._pending:
            after, message = self._pending.pop(0)
            self._pending.insert(0, (after - seconds, message))
        self._clock.now += seconds
        return None

    def kill(self) -> None:
        self.killed = True


class Bench:
    """Runs items with scripted workers and records the outcome."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / "measured.json"
        self.clock = Clock()
        self.workers: list[tuple[str, Scripted]] = []
        self.script: dict[str, Sequence[Message]] = {}
        self.lines: list[str] = []

    def run(
        self,
        items: Sequence[Item],
        *,
        seconds: float = 100.0,
        stopping: Callable[[], bool] = lambda: False,
    ) -> str:
        def start(section: str) -> Scripted:
            assert all(worker.killed for _, worker in self.workers)  # Only one runs at a time.
            self.workers.append((section, Scripted(self.script, self.clock)))
            return self.workers[-1][1]

        saved = record.Record(self.path)
        saved.begin({"date": "today"})
        budget = Budget(seconds, {"a": 0.5, "b": 0.5}, self.clock)
        ending = running.run(
            items, budget, saved, start, stopping, clock=self.clock, say=self.lines.append
        )
        assert all(worker.killed for _, worker in self.workers)
        return ending

    @property
    def items(self) -> dict[str, Any]:
        return json.loads(self.path.read_text())["items"]

    def statuses(self) -> dict[str, str]:
        return {name: entry["status"] for name, entry in self.items.items()}


@pytest.fixture
def bench(tmp_path: pathlib.Path) -> Bench:
    return Bench(tmp_path)


def item(name: str, section: str = "a", *, limit: float = 20.0, required: bool = False) -> Item:
    return Item(name, section, "no:thing", {}, limit, 5.0, required)


def test_all_items_are_measured_in_order(bench: Bench) -> None:
    bench.script = {"one": [(3.0, DONE)], "two": [(4.0, DONE)]}

    assert bench.run([item("one"), item("two")]) == running.FINISHED

    assert list(bench.items) == ["one", "two"]
    assert bench.items["one"]["result"] == {"found": 1}
    assert bench.items["two"]["seconds"] == pytest.approx(4.0)


def test_a_hanging_item_is_killed_at_its_limit_and_the_next_one_runs(bench: Bench) -> None:
    bench.script = {"one": [(2.0, PARTIAL)], "two": [(4.0, DONE)]}

    assert bench.run([item("one"), item("two")]) == running.OUT_OF_TIME

    assert bench.statuses() == {"one": record.STOPPED, "two": record.DONE}
    assert bench.items["one"]["result"] == {"found": 0}
    assert bench.items["one"]["seconds"] == pytest.approx(20.0)
    assert len(bench.workers) == 2


def test_partial_results_are_saved_at_once(bench: Bench) -> None:
    bench.script = {"one": [(1.0, PARTIAL), (5.0, DONE)]}
    entries = []

    def read_record() -> bool:
        if bench.path.exists() and bench.clock.now == 3.0:  # Between the two messages.
            entries.append(bench.items["one"])
        return False

    bench.run([item("one")], stopping=read_record)

    assert entries[0]["status"] == record.STOPPED
    assert entries[0]["result"] == {"found": 0}


def test_a_requested_stop_keeps_results_and_starts_nothing(bench: Bench) -> None:
    bench.script = {"one": [(1.0, PARTIAL)], "two": [(1.0, DONE)]}

    ending = bench.run([item("one"), item("two")], stopping=lambda: bench.clock.now > 4.0)

    assert ending == running.ASKED_TO_STOP
    assert bench.statuses() == {"one": record.STOPPED}
    assert bench.items["one"]["result"] == {"found": 0}


def test_a_second_start_measures_the_remaining_items(bench: Bench) -> None:
    bench.script = {"one": [(1.0, DONE)]}
    bench.run([item("one"), item("two")])
    bench.script = {"two": [(1.0, DONE)]}

    assert bench.run([item("one"), item("two")]) == running.FINISHED

    assert bench.statuses() == {"one": record.DONE, "two": record.DONE}
    assert [entry["run"] for entry in bench.items.values()] == [0, 1]


def test_a_failed_item_has_an_error_and_others_run(bench: Bench) -> None:
    bench.script = {"one": [(1.0, (worker.FAILED, "no memory"))], "two": [(1.0, DONE)]}

    bench.run([item("one"), item("two")])

    assert bench.items["one"]["error"] == "no memory"
    assert bench.statuses()["two"] == record.DONE


def test_nothing_more_is_measured_if_a_required_item_fails(bench: Bench) -> None:
    bench.script = {"one": [(1.0, (worker.FAILED, "no GPU"))], "two": [(1.0, DONE)]}

    assert bench.run([item("one", required=True), item("two")]) == running.NOT_POSSIBLE

    assert list(bench.items) == ["one"]


def test_items_without_time_in_their_section_get_the_remaining_time_at_the_end(
    bench: Bench,
) -> None:
    # Section a ends at 50, so its third item waits until b is done.
    names = ["one", "two", "three"]
    scripts: dict[str, Sequence[Message]] = {name: [(23.0, DONE)] for name in names}
    bench.script = {**scripts, "other": [(1.0, DONE)]}

    ending = bench.run([*(item(name, limit=30.0) for name in names), item("other", "b")])

    assert ending == running.FINISHED
    assert list(bench.items) == ["one", "two", "other", "three"]
    assert [section for section, _ in bench.workers] == ["a", "b", "a"]


def test_it_ends_in_time_and_names_items_without_time(bench: Bench) -> None:
    ending = bench.run([item(str(i), limit=30.0) for i in range(9)], seconds=100.0)

    assert ending == running.OUT_OF_TIME
    assert bench.clock.now <= 100.0
    assert bench.lines[-1] == "no time for 4, 5, 6, 7, 8"


def test_nan_is_saved_as_null(bench: Bench) -> None:
    bench.script = {"one": [(1.0, (worker.DONE, {"error": float("nan")}))]}

    bench.run([item("one")])

    assert bench.items["one"]["result"] == {"error": None}


def test_a_file_that_is_not_a_record_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="is not a record"):
        record.Record(path)

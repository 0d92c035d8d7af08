"""Items are measured in order and in time, and what was found is kept, whatever happens."""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from tools.gpu import record, running, worker
from tools.gpu.budget import Budget, Item

Said = tuple[float, tuple[str, Any]]  # Seconds until it is said, and what.
DONE = (worker.DONE, {"found": 1})
PARTIAL = (worker.PARTIAL, {"found": 0})


class Time:
    """A clock that only waiting moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Scripted:
    """A worker that says what a script has for each item; what has none hangs."""

    def __init__(self, script: Mapping[str, Sequence[Said]], clock: Time) -> None:
        self._script, self._clock = script, clock
        self._left: list[Said] = []
        self.killed = False

    def begin(self, item: Item, seconds: float) -> None:
        del seconds
        assert not self.killed
        self._left = list(self._script.get(item.name, ()))

    def hear(self, seconds: float) -> tuple[str, Any] | None:
        if self._left and self._left[0][0] <= seconds:
            after, said = self._left.pop(0)
            self._clock.now += after
            return said
        if self._left:
            after, said = self._left.pop(0)
            self._left.insert(0, (after - seconds, said))
        self._clock.now += seconds
        return None

    def kill(self) -> None:
        self.killed = True


class Bench:
    """All that a test needs: items, a script of what they say, and what came of it."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.path = folder / "measured.json"
        self.clock = Time()
        self.workers: list[tuple[str, Scripted]] = []
        self.script: dict[str, Sequence[Said]] = {}
        self.said: list[str] = []

    def run(
        self,
        items: Sequence[Item],
        *,
        seconds: float = 100.0,
        stopping: Callable[[], bool] = lambda: False,
    ) -> str:
        def start(section: str) -> Scripted:
            assert all(one.killed for _, one in self.workers)  # Never two at a time.
            self.workers.append((section, Scripted(self.script, self.clock)))
            return self.workers[-1][1]

        kept = record.Record(self.path)
        kept.begin({"date": "today"})
        budget = Budget(seconds, {"a": 0.5, "b": 0.5}, self.clock)
        how = running.run(
            items, budget, kept, start, stopping, clock=self.clock, say=self.said.append
        )
        assert all(one.killed for _, one in self.workers)
        return how

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


def test_an_item_that_hangs_is_killed_at_its_limit_and_the_next_goes_on(bench: Bench) -> None:
    bench.script = {"one": [(2.0, PARTIAL)], "two": [(4.0, DONE)]}

    assert bench.run([item("one"), item("two")]) == running.OUT_OF_TIME

    assert bench.statuses() == {"one": record.STOPPED, "two": record.DONE}
    assert bench.items["one"]["result"] == {"found": 0}
    assert bench.items["one"]["seconds"] == pytest.approx(20.0)
    assert len(bench.workers) == 2


def test_what_was_found_so_far_is_in_the_file_at_once(bench: Bench) -> None:
    bench.script = {"one": [(1.0, PARTIAL), (5.0, DONE)]}
    seen = []

    def look() -> bool:
        if bench.path.exists() and bench.clock.now == 3.0:  # Between the two.
            seen.append(bench.items["one"])
        return False

    bench.run([item("one")], stopping=look)

    assert seen[0]["status"] == record.STOPPED
    assert seen[0]["result"] == {"found": 0}


def test_when_asked_to_stop_it_keeps_what_there_is_and_begins_nothing(bench: Bench) -> None:
    bench.script = {"one": [(1.0, PARTIAL)], "two": [(1.0, DONE)]}

    how = bench.run([item("one"), item("two")], stopping=lambda: bench.clock.now > 4.0)

    assert how == running.ASKED_TO_STOP
    assert bench.statuses() == {"one": record.STOPPED}
    assert bench.items["one"]["result"] == {"found": 0}


def test_a_second_start_measures_what_is_not_done(bench: Bench) -> None:
    bench.script = {"one": [(1.0, DONE)]}
    bench.run([item("one"), item("two")])
    bench.script = {"two": [(1.0, DONE)]}

    assert bench.run([item("one"), item("two")]) == running.FINISHED

    assert bench.statuses() == {"one": record.DONE, "two": record.DONE}
    assert [entry["run"] for entry in bench.items.values()] == [0, 1]


def test_an_item_that_fails_says_why_and_others_go_on(bench: Bench) -> None:
    bench.script = {"one": [(1.0, (worker.FAILED, "no memory"))], "two": [(1.0, DONE)]}

    bench.run([item("one"), item("two")])

    assert bench.items["one"]["error"] == "no memory"
    assert bench.statuses()["two"] == record.DONE


def test_nothing_is_measured_without_what_is_required(bench: Bench) -> None:
    bench.script = {"one": [(1.0, (worker.FAILED, "no GPU"))], "two": [(1.0, DONE)]}

    assert bench.run([item("one", required=True), item("two")]) == running.NOT_POSSIBLE

    assert list(bench.items) == ["one"]


def test_items_without_time_in_their_section_get_what_is_left_in_the_end(bench: Bench) -> None:
    # Section a ends at 50, so its third item waits until b is done.
    names = ["one", "two", "three"]
    scripts: dict[str, Sequence[Said]] = {name: [(23.0, DONE)] for name in names}
    bench.script = {**scripts, "other": [(1.0, DONE)]}

    how = bench.run([*(item(name, limit=30.0) for name in names), item("other", "b")])

    assert how == running.FINISHED
    assert list(bench.items) == ["one", "two", "other", "three"]
    assert [section for section, _ in bench.workers] == ["a", "b", "a"]


def test_it_ends_in_time_and_names_what_had_none(bench: Bench) -> None:
    how = bench.run([item(str(i), limit=30.0) for i in range(9)], seconds=100.0)

    assert how == running.OUT_OF_TIME
    assert bench.clock.now <= 100.0
    assert bench.said[-1] == "no time for 4, 5, 6, 7, 8"


def test_numbers_that_json_does_not_have_become_null(bench: Bench) -> None:
    bench.script = {"one": [(1.0, (worker.DONE, {"error": float("nan")}))]}

    bench.run([item("one")])

    assert bench.items["one"]["result"] == {"error": None}


def test_another_file_is_not_taken_for_a_record(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "measured.json"
    path.write_text('{"format": 0}')
    with pytest.raises(ValueError, match="is not a record"):
        record.Record(path)

"""The queue of a study: workers run each configuration once, even if some are killed."""

import contextlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest

from remem_jax.checks import SettingError
from remem_jax.storage import process
from remem_jax.study import queue
from remem_jax.study.claim import Claim
from remem_jax.study.configurations import Configuration
from tests import forking

HEARTBEAT, GRACE = 0.1, 0.6  # In seconds.


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a temporary PostgreSQL server on loopback; {} stands for the database."""
    pytest.importorskip("psycopg")
    folders = [str(path) for path in pathlib.Path("/usr/lib/postgresql").glob("*/bin")]
    path = os.pathsep.join([os.environ["PATH"], *folders])
    initdb, pg_ctl = shutil.which("initdb", path=path), shutil.which("pg_ctl", path=path)
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql).")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="pg"))  # Short: sockets have short paths.
    owner = "postgres" if os.getuid() == 0 else None  # The server refuses to run as root.
    if owner:
        shutil.chown(folder, owner, owner)

    def call(*command: str) -> None:
        outcome = subprocess.run(command, user=owner, group=owner, cwd=folder, **quiet)
        assert outcome.returncode == 0, (folder / "log").read_text()

    data = str(folder / "data")
    (folder / "password").write_text("secret")
    password = (f"--pwfile={folder / 'password'}", "-A", "scram-sha-256")
    with (folder / "log").open("w") as log:
        quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        call(initdb, "-D", data, "-U", "remem", *password, "-E", "UTF8", "--no-sync")
        port = 0
        for port in random.sample(range(20_000, 60_000), 5):  # Until a port is free.
            options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
            with contextlib.suppress(AssertionError):
                call(pg_ctl, "-D", data, "-w", "-o", options, "start")
                break
        try:
            yield f"postgresql://remem:secret@127.0.0.1:{port}/{{}}"
        finally:
            call(pg_ctl, "-D", data, "-w", "-m", "immediate", "stop")
            shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def storage(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """An empty storage of each kind."""
    if request.param != "postgresql":
        return f"{request.param}:{tmp_path / 'trials'}"
    import psycopg

    url, name = request.getfixturevalue("postgresql"), f"study_{uuid.uuid4().hex}"
    with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return url.format(name)


@pytest.fixture
def opened(storage: str) -> Iterator[Callable[..., queue.Queue]]:
    """Opens queues of one study, as several workers do."""
    with contextlib.ExitStack() as stack:
        yield lambda **changes: stack.enter_context(_open(storage, **changes))


@pytest.fixture
def files(tmp_path: pathlib.Path) -> Iterator[Callable[..., queue.Queue]]:
    """Opens queues of one study in a journal, for tests that do not depend on the storage."""
    with contextlib.ExitStack() as stack:
        name = f"journal:{tmp_path / 'trials'}"
        yield lambda **changes: stack.enter_context(_open(name, **changes))


@pytest.fixture(scope="module")
def server() -> Iterator[forking.Server]:
    """A server that forks workers; their warnings are errors."""
    with forking.Server("tests.study.queue_child", options=("-W", "error")) as server:
        yield server


@pytest.fixture
def started(server: forking.Server, storage: str) -> Iterator[Callable[..., forking.Child]]:
    """Starts a worker, which waits for a line before it works."""

    def start(keys: list[str], *, seconds: float) -> forking.Child:
        settings = _settings(grace_seconds=60)
        return server.start("tests.study.queue_child:main", storage, keys, seconds, settings)

    yield start
    server.close_children()


def _settings(**changes: Any) -> dict[str, Any]:
    return {"heartbeat_seconds": HEARTBEAT, "grace_seconds": GRACE, "attempts": 3} | changes


def _open(storage: str, **changes: Any) -> queue.Queue:
    folder = pathlib.Path("/nowhere")
    return queue.open_queue(storage, "study", folder=folder, **_settings(**changes))


def _configurations(*keys: str) -> list[Configuration]:
    return [Configuration(key, {"x": 0.5}, {"row": "vit"}) for key in keys]


def _claimed(shared: queue.Queue, *keys: str) -> Claim:
    claim = shared.claim(keys)
    assert claim is not None
    return claim


def _awaited(shared: queue.Queue, *keys: str) -> Claim:
    """Waits for a claim."""
    end = time.monotonic() + 60
    while (claim := shared.claim(keys)) is None:
        assert time.monotonic() < end
        time.sleep(HEARTBEAT / 2)
    return claim


def _line(worker: forking.Child) -> list[str]:
    return worker.stdout.readline().split()


def _send(worker: forking.Child) -> None:
    worker.stdin.write("\n")
    worker.stdin.flush()


def _trials(shared: queue.Queue) -> list[tuple[str, str]]:
    """Returns the state and reason of each trial."""
    trials = shared._study.get_trials(deepcopy=False)
    return [(trial.state.name, trial.user_attrs.get("reason", "")) for trial in trials]


def _failing(times: int, action: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps an action so that the storage is unreachable for the first few calls."""
    left = [times]

    def attempt(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise optuna.exceptions.StorageInternalError("database is locked")
        return action(*args, **kwargs)

    return attempt


def _clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Stops the clock of the queues; the returned function advances it by some seconds."""
    now = [1000.0]
    clock = types.SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep, time=time.time)
    monkeypatch.setattr(queue, "time", clock)

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_racing_workers_run_each_configuration_once(
    started: Callable[..., forking.Child], storage: str
) -> None:
    keys = [f"key{number}" for number in range(24)]
    workers = [started(keys, seconds=0) for _ in range(4)]

    for worker in workers:
        assert _line(worker) == ["ready"]
    for (
        worker
    ) in workers:  # They also create the tables, the study and the trials at the same time.
        _send(worker)
    printed = [
        line.split()
        for worker in workers
        for line in worker.communicate(timeout=200)[0].splitlines()
    ]

    assert sorted(key for event, key in printed if event == "begin") == sorted(keys)
    assert sorted(key for event, key in printed if event == "done") == sorted(keys)
    assert [worker.returncode for worker in workers] == [0] * 4
    with _open(storage) as shared:
        assert set(shared.states(keys).values()) == {"done"}


# No journal: a worker killed while it holds the lock blocks the others for half a minute.
@pytest.mark.parametrize("storage", ["sqlite", "postgresql"], indirect=True)
def test_killed_workers_lose_no_trial(started: Callable[..., forking.Child], storage: str) -> None:
    keys = [f"key{number}" for number in range(12)]
    workers = [started(keys, seconds=0.05) for _ in range(4)]

    for worker in workers:
        _line(worker)
        _send(worker)
    printed = []
    for worker in workers[:2]:
        line = _line(worker)
        printed += [line] if line else []  # Empty if the others were faster.
        worker.kill()
    printed += [
        line.split()
        for worker in workers
        for line in worker.communicate(timeout=200)[0].splitlines()
    ]

    done = [key for event, key in printed if event == "done"]
    with _open(storage) as shared:
        assert set(shared.states(keys).values()) == {"done"}
        assert len(done) == len(set(done))  # A kill may come before the line is printed.
        lost = [reason for _, reason in _trials(shared) if reason.startswith("lost")]
        assert len(lost) <= 2


@pytest.mark.parametrize("same_host", [True, False])
def test_the_trial_of_a_killed_worker_is_taken_over(
    same_host: bool,
    started: Callable[..., forking.Child],
    opened: Callable[..., queue.Queue],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = started(["a"], seconds=60)
    _line(worker)
    _send(worker)
    assert _line(worker) == ["begin", "a"]
    shared = opened(grace_seconds=60 if same_host else GRACE)
    if not same_host:
        monkeypatch.setattr(process, "space", lambda: "another machine's")
    assert shared.claim(["a"]) is None

    worker.kill()  # It stays a zombie, because nobody waits for it.
    claim = _awaited(shared, "a")

    assert claim.done(2.0, "another's")
    assert shared.records(["a"]) == {"a": "another's"}
    assert _trials(shared)[0][1].startswith(f"lost with process {worker.pid} on ")


def test_a_worker_suspended_for_too_long_overwrites_nothing(
    started: Callable[..., forking.Child], opened: Callable[..., queue.Queue]
) -> None:
    worker = started(["a"], seconds=0.2)
    _line(worker)
    _send(worker)
    assert _line(worker) == ["begin", "a"]
    worker.send_signal(signal.SIGSTOP)
    shared = opened()
    claim = _awaited(shared, "a")

    worker.send_signal(signal.SIGCONT)
    line = _line(worker)
    is_ours = claim.done(2.0, "another's")

    assert line == ["lost", "a"]
    assert is_ours
    assert (shared.values(["a"]), shared.records(["a"])) == ({"a": 2.0}, {"a": "another's"})


def test_a_configuration_added_twice_is_run_once(
    opened: Callable[..., queue.Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = opened(), opened()
    first.add(_configurations("a"))
    with monkeypatch.context() as patch:
        patch.setattr(
            second, "_groups", lambda keys: {}
        )  # As if both had read before either added.
        second.add(_configurations("a"))

    claim = _claimed(second, "a")
    meanwhile = first.claim(["a"])
    claim.done(1.0, None)

    assert claim.number == 0
    assert meanwhile is None
    assert first.claim(["a"]) is None
    assert _trials(first) == [("COMPLETE", ""), ("PRUNED", "duplicate")]


def test_adding_a_configuration_again_adds_no_trial(
    opened: Callable[..., queue.Queue],
) -> None:
    shared = opened()
    shared.add(_configurations("a", "b", "a"))
    _claimed(shared, "a").done(1.0, None)

    shared.add(_configurations("b", "a"))

    assert [state for state, _ in _trials(shared)] == ["COMPLETE", "WAITING"]


def test_only_the_given_keys_are_claimed(files: Callable[..., queue.Queue]) -> None:
    shared = files()
    shared.add(_configurations("a", "b"))

    claim = _claimed(shared, "b", "unknown")

    assert claim.key == "b"
    assert shared.claim(["b", "unknown"]) is None
    assert shared.states(["a", "b", "unknown"]) == {"a": "waiting", "b": "running"}


def test_a_configuration_given_back_can_be_claimed_at_once(
    opened: Callable[..., queue.Queue],
) -> None:
    first, second = opened(), opened()
    first.add(_configurations("a"))

    accepted = [_claimed(first, "a").give_back("asked to stop") for _ in range(5)]
    claim = _claimed(second, "a")

    assert accepted == [True] * 5
    assert claim.number == 5
    assert second.states(["a"]) == {"a": "running"}


def test_a_configuration_keeps_the_number_of_its_first_trial(
    files: Callable[..., queue.Queue],
) -> None:
    shared = files()
    shared.add(_configurations("a", "b"))
    for _ in range(2):
        _claimed(shared, "a").give_back("asked to stop")

    claim = _claimed(shared, "a")

    assert claim.number == 3
    assert shared.numbers(["a", "b", "unknown"]) == {"a": 0, "b": 1}
    repeats = [trial.user_attrs.get("repeats") for trial in shared._study.get_trials()]
    assert repeats == [None, None, 0, 0]


def test_the_worker_of_a_running_configuration_is_known(
    opened: Callable[..., queue.Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, before = opened(), time.time()
    shared.add(_configurations("a", "b"))
    _claimed(shared, "a")

    running = shared.running_workers(["a", "b"])

    since = running["a"].pop("since")
    assert before <= since <= time.time()
    assert running == {"a": {"host": os.uname().nodename, "pid": os.getpid(), "died": False}}
    monkeypatch.setattr(process, "has_died", lambda worker: True)
    assert shared.running_workers(["a"])["a"]["died"]


def test_a_failed_configuration_is_not_tried_again(opened: Callable[..., queue.Queue]) -> None:
    shared = opened()
    shared.add(_configurations("a"))

    counts = _claimed(shared, "a").failed("the loss is nan")
    shared.add(_configurations("a"))

    assert counts
    assert shared.claim(["a"]) is None
    assert shared.states(["a"]) == {"a": "failed"}
    assert shared.failures(["a"]) == {"a": "the loss is nan"}


def test_a_configuration_that_kills_its_workers_is_given_up(
    opened: Callable[..., queue.Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = opened(attempts=2)
    shared.add(_configurations("a"))
    monkeypatch.setattr(process, "has_died", lambda worker: True)

    attempts = [shared.claim(["a"]) is not None for _ in range(3)]

    assert attempts == [True, True, False]
    assert shared.states(["a"]) == {"a": "failed"}
    assert shared.failures(["a"])["a"].startswith("given up after 2 attempts: lost with process ")


def test_failed_attempts_are_limited(files: Callable[..., queue.Queue]) -> None:
    shared = files(attempts=2)
    shared.add(_configurations("a"))

    for _ in range(2):
        _claimed(shared, "a").give_back("the disk is full", failed_attempt=True)

    reasons = "the disk is full; the disk is full"
    assert shared.failures(["a"]) == {"a": f"given up after 2 attempts: {reasons}"}


def test_configurations_with_failed_attempts_come_last(files: Callable[..., queue.Queue]) -> None:
    shared = files()
    shared.add(_configurations("a", "b"))
    _claimed(shared, "a", "b").give_back("the disk is full", failed_attempt=True)

    keys = [_claimed(shared, "a", "b").key for _ in range(2)]

    assert keys == ["b", "a"]


def test_a_worker_without_heartbeats_is_dead_after_grace_seconds(
    files: Callable[..., queue.Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = _clock(monkeypatch)
    worker, watcher = files(), files(grace_seconds=1.0)
    worker.add(_configurations("a"))
    claim = _claimed(worker, "a")

    taken = []
    for beats in [0, 1, 1, 1]:  # Four checks; the only new heartbeat is between the first two.
        worker._storage.set_trial_user_attr(claim._id, "beats", beats)
        taken.append(watcher.claim(["a"]) is not None)
        advance(0.5)

    assert taken == [False, False, False, True]


def test_time_between_two_checks_far_apart_does_not_count(
    files: Callable[..., queue.Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = _clock(monkeypatch)
    worker, watcher = files(), files()
    worker.add(_configurations("a"))
    _claimed(worker, "a")
    assert watcher.claim(["a"]) is None

    advance(100 * GRACE)  # The storage was unreachable, for the worker too.

    assert watcher.claim(["a"]) is None


def test_a_worker_notices_a_lost_trial(
    files: Callable[..., queue.Queue],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, other = files(heartbeat_seconds=0.02), files()
    worker.add(_configurations("a"))
    claim = _claimed(worker, "a")
    monkeypatch.setattr(process, "has_died", lambda worker: True)

    with claim.working():
        taken = _claimed(other, "a")
        end = time.monotonic() + 20
        while not claim.lost and time.monotonic() < end:
            time.sleep(0.01)
        lost = claim.lost
    late = [claim.failed("late"), claim.give_back("late"), claim.done(3.0, "late")]

    assert lost
    assert late == [False] * 3
    assert taken.done(2.0, "in time")
    assert other.records(["a"]) == {"a": "in time"}
    assert caplog.text.count("another worker has taken it over") == 1


def test_work_continues_while_the_storage_is_unreachable(
    files: Callable[..., queue.Queue],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared = files(heartbeat_seconds=0.02)
    shared.add(_configurations("a"))
    claim = _claimed(shared, "a")
    beat = _failing(3, shared._storage.set_trial_user_attr)
    monkeypatch.setattr(shared._storage, "set_trial_user_attr", beat)

    with claim.working():
        end = time.monotonic() + 20
        while shared._storage.get_trial(claim._id).user_attrs["beats"] < 4:
            assert time.monotonic() < end
            time.sleep(0.01)

    assert claim.done(1.0, None)
    assert caplog.text.count("Trial 0 has no heartbeat: database is locked.") == 1


def test_a_result_is_written_when_the_storage_is_back(
    files: Callable[..., queue.Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = files(heartbeat_seconds=0.02)
    shared.add(_configurations("a"))
    claim = _claimed(shared, "a")
    end = _failing(3, shared._storage.set_trial_state_values)
    monkeypatch.setattr(shared._storage, "set_trial_state_values", end)

    counts = claim.done(1.0, "found")

    assert counts
    assert shared.records(["a"]) == {"a": "found"}


def test_a_result_counts_if_only_the_reply_of_the_storage_was_lost(
    files: Callable[..., queue.Queue],
) -> None:
    shared = files()
    shared.add(_configurations("a"))
    claim = _claimed(shared, "a")

    counts = [claim.done(1.0, "found") for _ in range(2)]

    assert counts == [True, True]


def test_a_storage_that_stays_unreachable_is_a_setting_error(
    files: Callable[..., queue.Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = files(heartbeat_seconds=0.01, grace_seconds=0.03)
    away = _failing(1000, shared._study.get_trials)
    monkeypatch.setattr(shared._study, "get_trials", away)

    with pytest.raises(
        SettingError, match=r"cannot be used \(database is locked\).*config.storage"
    ):
        shared.claim(["a"])


def test_a_large_record_is_kept(opened: Callable[..., queue.Queue]) -> None:
    record = {"curve": [number / 7 for number in range(20_000)], "note": 'é"\x00', "none": None}
    shared = opened()
    shared.add(_configurations("a"))

    _claimed(shared, "a").done(0.25, record)

    assert len(json.dumps(record)) > 300_000
    assert opened().records(["a"]) == {"a": record}


def test_params_may_be_any_finite_number(opened: Callable[..., queue.Queue]) -> None:
    numbers = [0.5, -7e5, 3e9, 1e-12, 0]
    shared = opened()

    for number in numbers:
        shared.add([Configuration(f"key {number}", {"teacher.rho": number}, {})])

    trials = shared._study.get_trials()
    assert [trial.params["teacher.rho"] for trial in trials] == numbers


@pytest.mark.parametrize(
    "configuration",
    [
        Configuration("a", {"rho": float("nan")}, {}),
        Configuration("a", {"rho": float("inf")}, {}),
        Configuration("a", {}, {"reason": "mine"}),
    ],
)
def test_invalid_configurations_are_refused(
    configuration: Configuration, files: Callable[..., queue.Queue]
) -> None:
    with pytest.raises(ValueError, match="needs finite params"):
        files().add([configuration])


def test_a_nan_objective_is_refused(files: Callable[..., queue.Queue]) -> None:
    shared = files()
    shared.add(_configurations("a"))

    with pytest.raises(ValueError, match="must be finite; got nan"):
        _claimed(shared, "a").done(float("nan"), None)


@pytest.mark.parametrize(("kind", "file"), [("sqlite", "study.db"), ("journal", "study.journal")])
def test_a_kind_without_a_path_is_a_file_in_the_folder(
    kind: str, file: str, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "a % {folder} ?"

    with queue.open_queue(kind, "study", folder=folder, **_settings()) as shared:
        shared.add(_configurations("a"))

    assert (folder / file).stat().st_size > 0


@pytest.mark.parametrize(
    ("storage", "cause"),
    [
        ("mongo", "must be"),
        ("postgres:secret", "must be"),
        ("postgresql://user:secret@host:port/name", "must be"),
        ("postgresql://user:pass@secret@host/name", "must be"),
        ("oracle9://user:secret@host/name", "cannot be used"),
        ("mysql+mysqldb://user:secret@host/name", "needs a driver: pip install 'MySQLdb'"),
        ("postgresql://user:secret@127.0.0.1:1/name?password=secret", "cannot be used"),
        ("sqlite:/dev/null/study.db", "File exists: '/dev/null'"),
        ("sqlite:////dev/null/study.db", "File exists: '/dev/null'"),
        ("journal:/dev/null/study.journal", "File exists: '/dev/null'"),
    ],
)
def test_an_error_of_a_storage_shows_no_password(storage: str, cause: str) -> None:
    with pytest.raises(SettingError) as caught:
        _open(storage)

    message = str(caught.value)
    assert "config.storage" in message
    assert cause in message
    assert "secret" not in message
    assert caught.value.__context__ is None or caught.value.__suppress_context__


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_file_of_another_kind_is_a_setting_error(kind: str, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("Remember the milk.\n" * 100)

    with pytest.raises(SettingError, match=r"config\.storage"):
        _open(f"{kind}:{file}")


def test_a_missing_driver_of_postgresql_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(SettingError, match=r"pip install 'remem_jax\[postgresql\]'"):
        _open("postgresql://user:secret@host/name")


@pytest.mark.allow_hosts(["127.0.0.1"])
@pytest.mark.parametrize("place", ["PGPASSWORD", "PGPASSFILE", "PGSERVICE", "nowhere"])
def test_the_password_of_postgresql_may_come_from_libpq(
    place: str, postgresql: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGSERVICEFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = postgresql.format("postgres").replace(":secret@", "@")
    port = storage.rpartition(":")[2].partition("/")[0]
    file = tmp_path / "file"
    if place == "PGPASSWORD":
        monkeypatch.setenv("PGPASSWORD", "secret")
    elif place == "PGPASSFILE":
        file.write_text("127.0.0.1:*:*:remem:secret\n")
        file.chmod(0o600)
        monkeypatch.setenv("PGPASSFILE", str(file))
    elif place == "PGSERVICE":
        file.write_text(
            f"[mine]\nhost=127.0.0.1\nport={port}\nuser=remem\npassword=secret\ndbname=postgres\n"
        )
        monkeypatch.setenv("PGSERVICEFILE", str(file))
        monkeypatch.setenv("PGSERVICE", "mine")
        storage = "postgresql://"
    else:
        with pytest.raises(SettingError, match="no password supplied"):
            _open(storage)
        return

    with _open(storage) as shared:
        shared.add(_configurations(place))

        assert set(shared.states([place])) == {place}


def test_has_died_is_true_only_for_processes_known_to_be_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        alive = process.this() | {"pid": child.pid, "start": process.started(child.pid)}
        reused = alive | {"start": "1"}
        dead = [process.has_died(worker) for worker in (process.this(), alive, reused)]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # It stays a zombie.
        dead.append(process.has_died(alive))
    dead.append(process.has_died(alive))
    elsewhere = [alive | {"host": "another"}, alive | {"space": "another"}]

    assert dead == [False, False, True, True, True]
    assert [process.has_died(worker) for worker in elsewhere] == [False, False]


def test_the_dashboard_shows_the_study(storage: str, opened: Callable[..., queue.Queue]) -> None:
    import optuna_dashboard

    shared = opened()
    shared.add([Configuration("a", {"teacher.rho": 0.5}, {"row": "vit", "seed": 3})])
    _claimed(shared, "a").done(0.75, {"accuracy": 0.75})
    app = optuna_dashboard.wsgi(shared._storage)

    (study,) = _response(app, "/api/studies")["study_summaries"]
    (trial,) = _response(app, f"/api/studies/{study['study_id']}")["trials"]

    assert (study["study_name"], study["directions"]) == ("study", ["maximize"])
    assert (trial["state"], trial["values"]) == ("Complete", [0.75])
    assert [(p["name"], p["param_internal_value"]) for p in trial["params"]] == [
        ("teacher.rho", 0.5)
    ]
    attributes = {attribute["key"]: attribute["value"] for attribute in trial["user_attrs"]}
    assert (attributes["row"], attributes["seed"], attributes["key"]) == ("vit", "3", "a")


def _response(app: Callable[..., Any], path: str) -> Any:
    """Returns the response of a WSGI application, without a server."""
    statuses = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "QUERY_STRING": "after=0",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
    }
    body = b"".join(app(environ, lambda status, headers, error=None: statuses.append(status)))
    assert statuses == ["200 OK"], body
    return json.loads(body)

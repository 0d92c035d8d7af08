"""The process that sends the metrics of a run to a tracker: see `trackers`.

Its standard input has a line of JSON with the run and, when the run ends, another with its state,
and whether it has written results.json.
tracked.json in the folder of the run has the id of the tracked run, and how much of metrics.jsonl
it has. This module does not import JAX.
"""

import contextlib
import fcntl
import functools
import importlib
import json
import os
import pathlib
import re
import select
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from remem_jax import redaction
from remem_jax.storage import files

RECORD = "tracked.json"
_POLL_SECONDS = 1.0
_RETRY_SECONDS = 30.0  # After a failure, which is reported once.
_LAST_SECONDS = 120.0  # Time to send the rest after the run has ended.
_LAST_PAUSES = (0.0, 2.0, 5.0)  # Seconds before each attempt at that.
_PROJECT = "remem_jax"  # Unless the client's environment variable names another.
# MLflow's limits, of a request and of the value of a setting.
_BATCH, _SETTINGS, _LENGTH = 1000, 100, 6000
# MLflow waits for minutes, with the run's last metrics, for a server that is gone.
_MLFLOW = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}


class Client(Protocol):
    """A tracked run."""

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Sends rows of metrics.jsonl."""
        ...

    def finish(self, state: str, results: Mapping[str, float]) -> None:
        """Ends the tracked run as "finished", "stopped" (to be resumed) or "failed"."""
        ...


class _Wandb:
    """A run of Weights & Biases. Its client sends in the background, and retries by itself."""

    def __init__(self, run: Mapping[str, Any], number: str) -> None:
        wandb = importlib.import_module("wandb")  # An extra.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            id=number,
            resume="allow",
            group=run["group"] or None,
            name=run["name"],
            config=dict(run["settings"]),
            allow_val_change=True,
            dir=run["directory"],
            # Neither code, nor the command line, which may have secrets.
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, x_disable_meta=True
            ),
        )
        if url := self._run.url:
            _say("info", url)
        self._parts: set[str] = set()

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            part = row["part"]
            if part not in self._parts:  # Each stage counts its steps from 1.
                self._run.define_metric(f"{part}/*", step_metric=f"{part}/step")
                self._parts.add(part)
            self._run.log({**dict(_scalars(row)), f"{part}/step": row["step"]})

    def finish(self, state: str, results: Mapping[str, float]) -> None:
        self._run.summary.update({f"results/{name}": value for name, value in results.items()})
        if state == "stopped":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state == "finished" else 1)


class _Mlflow:
    """A run of MLflow, at the server or folder that MLFLOW_TRACKING_URI names."""

    _STATES: Mapping[str, str] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}

    def __init__(self, run: Mapping[str, Any], number: str) -> None:
        for name, value in _MLFLOW.items():
            os.environ.setdefault(name, value)
        mlflow = importlib.import_module("mlflow")
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        if number:
            self.number = number
            self._client.update_run(number, status="RUNNING")
            return
        tags = {"mlflow.runName": run["name"], **({"group": run["group"]} if run["group"] else {})}
        self.number = self._client.create_run(self._experiment(), tags=tags).info.run_id
        settings = [
            self._entities.Param(name, str(value)[:_LENGTH])
            for name, value in _flat(run["settings"])
            if str(value)  # Not all stores accept an empty one.
        ]
        for i in range(0, len(settings), _SETTINGS):
            self._client.log_batch(self.number, params=settings[i : i + _SETTINGS])

    def _experiment(self) -> str:
        if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return number
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _PROJECT
        found = self._client.get_experiment_by_name(name)
        if found is None:
            # Another worker may be faster.
            with contextlib.suppress(Exception):
                return self._client.create_experiment(name)
            found = self._client.get_experiment_by_name(name)
        if found is None:
            raise RuntimeError(f"there is no experiment {name}, and none can be created")
        return found.experiment_id

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        metrics = [
            self._metric(name, value, row["time"], row["step"])
            for row in rows
            for name, value in _scalars(row)
        ]
        for i in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.number, metrics=metrics[i : i + _BATCH])

    def finish(self, state: str, results: Mapping[str, float]) -> None:
        now = time.time()
        metrics = [
            self._metric(f"results/{name}", value, now, 0) for name, value in results.items()
        ]
        self._client.log_batch(self.number, metrics=metrics)
        self._client.set_terminated(self.number, self._STATES[state])

    def _metric(self, name: str, value: float, seconds: float, step: int) -> Any:
        legal = re.sub(r"[^\w\-. /:]", "_", name)
        return self._entities.Metric(legal, value, int(1000 * seconds), step)


class _Rows(NamedTuple):
    """Rows of metrics.jsonl, and the offset at which they end."""

    rows: list[dict[str, Any]]
    end: int


class _Follower:
    """Sends what is new in metrics.jsonl."""

    def __init__(self, run: Mapping[str, Any]) -> None:
        self._run, self._folder = run, pathlib.Path(run["directory"])
        with contextlib.suppress(OSError):  # Until that of an earlier start has sent its rest.
            fcntl.flock(os.open(self._folder, os.O_RDONLY), fcntl.LOCK_EX)
        self._client: Client | None = None
        record = _read(self._folder / RECORD)
        self._others = {tool: value for tool, value in record.items() if tool != run["tool"]}
        self._number, self._sent = record.get(run["tool"], ("", 0))
        # It is smaller if the folder is an older copy; then the rest was sent before.
        self._sent = min(self._sent, self._size())

    def send(self) -> None:
        """Opens the tracked run, if need be, and sends the new rows."""
        if self._client is None:
            self._client = self._open()
        with contextlib.suppress(FileNotFoundError):
            while (new := self._next()).end > self._sent:
                self._client.log(new.rows)
                self._sent = new.end  # Rows that the client refused are sent again.
                self._record()

    def end(self, state: str, *, has_results: bool) -> None:
        """Sends the rest, and ends the tracked run in this state."""
        self.send()
        if self._client is not None:
            self._client.finish(state, _numbers(self._folder) if has_results else {})

    def _open(self) -> Client:
        if self._run["tool"] == "wandb":
            self._number = self._number or uuid.uuid4().hex[:12]
            client = _Wandb(self._run, self._number)
        else:
            client = _Mlflow(self._run, self._number)
            self._number = client.number
        self._record()
        return client

    def _next(self) -> "_Rows":
        """Returns the next complete rows; none if all were sent."""
        with (self._folder / "metrics.jsonl").open("rb") as file:
            file.seek(self._sent)
            lines = file.readlines(2**20)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        rows = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # A kill has truncated it.
                rows.append(json.loads(line))
        return _Rows(rows, self._sent + sum(map(len, lines)))

    def _record(self) -> None:
        record = {**self._others, self._run["tool"]: (self._number, self._sent)}
        files.write_text(self._folder / RECORD, json.dumps(record) + "\n")

    def _size(self) -> int:
        try:
            return (self._folder / "metrics.jsonl").stat().st_size
        except FileNotFoundError:
            return 0


def main() -> None:
    """Follows a run until it ends."""
    os.nice(10)  # The run comes first.
    run = json.loads(sys.stdin.readline())
    follower, warned, retry = _Follower(run), False, 0.0
    while not select.select([sys.stdin], [], [], _POLL_SECONDS)[0]:
        if time.monotonic() < retry:
            continue
        if reason := _failure(follower.send):
            if not warned:
                _say("warning", f"metrics cannot be sent, which does not stop the run: {reason}")
            warned, retry = True, time.monotonic() + _RETRY_SECONDS
    # The run was killed if it did not say how it ended.
    end = json.loads(sys.stdin.readline() or '{"state": "failed", "has_results": false}')
    threading.Timer(_LAST_SECONDS, os._exit, (1,)).start()
    reason = ""
    for pause in _LAST_PAUSES:
        time.sleep(pause)
        reason = _failure(functools.partial(follower.end, **end))
        if not reason:
            break
    if reason:
        _say("warning", f"some metrics were not sent: {reason}")
    sys.stderr.flush()
    os._exit(0)  # Threads of clients do not delay the end.


def _failure(send: Callable[[], None]) -> str:
    """Sends; returns why that failed, "" if it did not."""
    try:
        send()
    except Exception as error:  # noqa: BLE001 - clients raise anything.
        return " ".join(f"{type(error).__name__}: {error}".split())[:500]
    return ""


def _say(kind: str, text: str) -> None:
    sys.stderr.write(f"remem_jax {kind}: {redaction.without_secrets(text)}\n")
    sys.stderr.flush()


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yields the metrics of a row by name, one for each student."""
    for name, value in row.items():
        if name in ("part", "step", "time"):
            continue
        for i, member in enumerate(value if isinstance(value, list) else [value]):
            suffix = f"/{i}" if isinstance(value, list) else ""
            if isinstance(member, int | float):  # None if it was not finite.
                yield f"{row['part']}/{name}{suffix}", member


def _numbers(folder: pathlib.Path) -> dict[str, float]:
    """Returns the numbers of each method in results.json."""
    rows = _read(folder / "results.json").get("methods", ())
    return {
        name: value
        for row in rows
        for name, value in _flat(
            {part: row.get(part) for part in ("student", "teacher", "selected")},
            f"{row['method']}/",
            separator="/",
        )
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _flat(
    tree: Mapping[str, Any], prefix: str = "", *, separator: str = "."
) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}{separator}", separator=separator)
        else:
            yield prefix + name, value


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


if __name__ == "__main__":
    main()

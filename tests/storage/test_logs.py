"""Metrics as JSON lines and for TensorBoard."""

import json
import pathlib
import struct
import subprocess
import sys
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from remem_jax.storage import logs


def _plain(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "time"} for row in rows]


def test_metrics_are_read_by_stage_and_step(tmp_path: pathlib.Path) -> None:
    with logs.RunLog(tmp_path) as log:
        log.write("student", 20, {"loss": [0.5, 0.25]})
        log.write("student", 3, {"loss": [1.0, 2.0]})
        log.write("a teacher", 7, {"loss": 1.5, "top1": 0.75})

    assert _plain(logs.read(tmp_path)) == [
        {"part": "a teacher", "step": 7, "loss": 1.5, "top1": 0.75},
        {"part": "student", "step": 3, "loss": [1.0, 2.0]},
        {"part": "student", "step": 20, "loss": [0.5, 0.25]},
    ]


def test_arrays_are_written_as_numbers(tmp_path: pathlib.Path) -> None:
    with logs.RunLog(tmp_path) as log:
        log.write("teacher", 1, {"loss": jnp.float32(0.5), "all": np.asarray([1.0, 2.0])})

    assert _plain(logs.read(tmp_path)) == [
        {"part": "teacher", "step": 1, "loss": 0.5, "all": [1.0, 2.0]}
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_read_as_none(tmp_path: pathlib.Path, value: float) -> None:
    with logs.RunLog(tmp_path) as log:
        log.write("student", 1, {"loss": [value, 1.0]})

    assert logs.read(tmp_path)[0]["loss"] == [None, 1.0]


def test_a_run_without_metrics_has_no_rows(tmp_path: pathlib.Path) -> None:
    assert logs.read(tmp_path) == []


def test_metrics_of_a_step_are_readable_before_the_log_is_closed(tmp_path: pathlib.Path) -> None:
    with logs.RunLog(tmp_path) as log:
        log.write("teacher", 1, {"loss": 0.5})

        assert logs.read(tmp_path)[0]["loss"] == 0.5


def test_a_resumed_run_appends_to_its_metrics(tmp_path: pathlib.Path) -> None:
    for step in (1, 2):
        with logs.RunLog(tmp_path) as log:
            log.write("teacher", step, {"loss": 0.5})

    assert [row["step"] for row in logs.read(tmp_path)] == [1, 2]


def test_the_last_row_of_a_step_written_twice_is_used(tmp_path: pathlib.Path) -> None:
    for loss in (1.0, 0.5):
        with logs.RunLog(tmp_path) as log:
            log.write("teacher", 1, {"loss": loss})

    assert _plain(logs.read(tmp_path)) == [{"part": "teacher", "step": 1, "loss": 0.5}]


def test_metrics_of_one_step_written_separately_are_merged(tmp_path: pathlib.Path) -> None:
    with logs.RunLog(tmp_path) as log:
        log.write("teacher", 1, {"loss": 0.5})
        log.write("teacher", 1, {"validation": 0.75})

    assert _plain(logs.read(tmp_path)) == [
        {"part": "teacher", "step": 1, "loss": 0.5, "validation": 0.75}
    ]


@pytest.fixture
def truncated(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder of a run that was killed while writing its second line."""
    with logs.RunLog(tmp_path) as log:
        log.write("teacher", 1, {"loss": 1.0})
        log.write("teacher", 2, {"loss": 0.5})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    return tmp_path


def test_a_truncated_line_is_ignored(truncated: pathlib.Path) -> None:
    assert [row["step"] for row in logs.read(truncated)] == [1]


def test_the_line_after_a_truncated_one_is_complete(truncated: pathlib.Path) -> None:
    with logs.RunLog(truncated) as log:
        log.write("teacher", 2, {"loss": 0.25})

    assert [row["loss"] for row in logs.read(truncated)] == [1.0, 0.25]


def test_there_is_no_empty_line_if_none_was_truncated(tmp_path: pathlib.Path) -> None:
    for step in (1, 2):
        with logs.RunLog(tmp_path) as log:
            log.write("teacher", step, {"loss": 0.5})

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def _scalars(directory: pathlib.Path) -> Iterator[tuple[str, int, float]]:
    """Parses TensorBoard's records: a length, its checksum, an event, its checksum."""
    for path in sorted(directory.glob("tensorboard/events.*")):
        content = path.read_bytes()
        start = 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            event = event_pb2.Event.FromString(content[start + 12 : start + 12 + length])
            for value in event.summary.value:
                yield value.tag, event.step, value.simple_value
            start += 12 + length + 4


def test_tensorboard_shows_scalars(tmp_path: pathlib.Path) -> None:
    with logs.RunLog(tmp_path) as log:
        log.write("teachers/remem", 7, {"loss": 0.5})

    assert list(_scalars(tmp_path)) == [("teachers/remem/loss", 7, 0.5)]


def test_tensorboard_shows_a_curve_per_student(tmp_path: pathlib.Path) -> None:
    with logs.RunLog(tmp_path) as log:
        log.write("students", 7, {"loss": [0.5, 0.25]})

    assert list(_scalars(tmp_path)) == [("students/loss/0", 7, 0.5), ("students/loss/1", 7, 0.25)]


_WRITE_TOO_MUCH = """
import pathlib, resource, sys
from remem_jax.storage import logs

# As on a full disk: files may have 4 kB, and no more.
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
with logs.RunLog(pathlib.Path(sys.argv[1])) as log:
    for step in range(10_000):
        log.write("teacher", step, {"loss": 1.0})
"""


def test_a_full_disk_is_an_error_and_does_not_hang(tmp_path: pathlib.Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _WRITE_TOO_MUCH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        cwd=pathlib.Path(__file__).parents[2],
    )

    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == "OSError: [Errno 27] File too large"
    assert len(logs.read(tmp_path)) > 10

"""Profiler traces of training steps."""

import gzip
import json
import pathlib

import jax
import jax.numpy as jnp

from remem_jax.train import profiling


def _train(trace: profiling.Trace, *, first_step: int, steps: int) -> None:
    double = jax.jit(lambda x: 2 * x)
    for done in range(first_step + 1, first_step + steps + 1):
        double(jnp.ones(4)).block_until_ready()
        trace(done)
    trace.close()


def test_a_trace_has_files_for_perfetto_and_tensorboard(tmp_path: pathlib.Path) -> None:
    _train(profiling.Trace(tmp_path / "trace", first_step=7), first_step=7, steps=20)

    (perfetto,) = tmp_path.glob("trace/plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]
    assert any("jit" in str(event.get("name")).lower() for event in events)
    assert list(perfetto.parent.glob("*.xplane.pb"))  # The file for TensorBoard.


def test_a_training_that_is_too_short_writes_no_trace(tmp_path: pathlib.Path) -> None:
    _train(profiling.Trace(tmp_path / "trace", first_step=0), first_step=0, steps=2)

    assert not (tmp_path / "trace").exists()


def test_a_training_that_ends_early_writes_a_complete_trace(tmp_path: pathlib.Path) -> None:
    _train(profiling.Trace(tmp_path / "trace", first_step=0), first_step=0, steps=5)

    assert list(tmp_path.glob("trace/plugins/profile/*/perfetto_trace.json.gz"))


def test_a_resumed_training_is_not_traced_again(tmp_path: pathlib.Path) -> None:
    for first_step in (0, 20):
        trace = profiling.Trace(tmp_path / "trace", first_step=first_step)
        _train(trace, first_step=first_step, steps=10)

    assert len(list(tmp_path.glob("trace/plugins/profile/*"))) == 1

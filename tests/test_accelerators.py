"""The tool that compiles for accelerators that are not there, on CPUs, and what its table says."""

import pathlib
import sys
from typing import Any

import jax
import pytest

from remem_jax import mesh
from tools import accelerators
from tools.aot import case, collectives, expected, rows, steps, table, targets

GIB = 2**30
TINY = {
    "compute_dtype": "float32",
    "methods": ("remem",),
    "data.image_size": 16,
    "teacher.batch_size": 8,
    "student.batch_size": 8,
    "information.batch_size": 8,
    "information.seeds": (0,),
}
OPTIONS = "variant=Pico/8,student=mobilenet_v2_035"


def _row(make: Any, **changes: Any) -> rows.Row:
    return rows.Row("tiny", OPTIONS, TINY | changes, make)


def _step(row: rows.Row, devices: int = 2) -> steps.Step:
    on = mesh.make_mesh(jax.devices()[:devices])
    return row.make(steps.open_run(row.config(), on, 2**34))


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.slow
def test_a_step_of_two_devices_passes_its_gradients_and_nothing_else(fsdp: bool) -> None:
    """Compiled for CPUs, whose compiler divides the work as those of accelerators do."""
    step = _step(_row(steps.teacher, fsdp=fsdp))
    (function,) = step.functions

    found = collectives.find(function.jitted.lower(*function.arguments).compile().as_text())

    passing = expected.Passing(function.state.params, {}, {}, 2, 2, fsdp)
    assert step.passes == 2  # SAM's.
    assert expected.problems(found, passing) == []
    assert expected.problems(found, passing._replace(passes=1))
    assert ("all-gather" in {one.kind for one in found}) == fsdp


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (steps.distillation, ["augment", "teacher", "student"]),
        (steps.information, ["augment", "teacher", "decoder", "critic"]),
        (steps.evaluation, ["transform", "model", "count"]),
    ],
)
def test_each_function_of_a_step_is_that_of_a_run(make: Any, names: list[str]) -> None:
    """It is lowered for what the one before gives, on two devices."""
    step = _step(_row(make))

    lowered = [function.jitted.lower(*function.arguments) for function in step.functions]

    assert [function.name for function in step.functions] == names
    trained = [function.name for function in step.functions if function.state is not None]
    assert trained == [name for name in names if name in ("student", "decoder", "critic")]
    held = jax.tree.leaves(step.held)
    for function, one in zip(step.functions, lowered, strict=True):
        assert all(any(array is other for other in held) for array in function.arrays)
        assert "sharding" in one.as_text()


def test_memory_is_what_is_held_and_the_most_that_a_function_takes_beside() -> None:
    on = mesh.make_mesh(jax.devices()[:2])
    whole = jax.ShapeDtypeStruct((100,), "float32", sharding=mesh.replicated(on))
    rows_of = jax.ShapeDtypeStruct((100,), "float32", sharding=mesh.batch_sharding(on))
    functions = (
        steps.Function("augment", None, (rows_of,)),
        steps.Function("student", None, (whole, 3)),
    )
    compiled = [case.Compiled(50, 200, [], 1.0), case.Compiled(70, 400 + 12, [], 1.0)]

    total = case._total(steps.Step(functions, (whole, rows_of)), compiled, resident=1000)

    # Of the second, 12 bytes are padding.
    assert total == 1000 + 400 + 200 + 70 + 12


def _result(**changes: Any) -> case.Result:
    passed = {"all-reduce": [26, 3 * 2**19]}
    blank = case.Result("B-sam", "v5e-8", case.FITS, "", "blocks recomputed", 3 * GIB, passed, 41.6)
    return blank._replace(**changes)


def test_a_line_says_what_a_step_takes_and_what_it_passes() -> None:
    assert table.line(_result()) == [
        "ViT-B/16, SAM",
        "8 TPU v5e (16 GB)",
        "blocks recomputed",
        "yes",
        "3.0",
        "15.8",
        "all-reduce 26, 1.5",
        "42",
    ]


def test_what_fits_and_passes_what_it_should_is_no_failure() -> None:
    assert table.failures([_result()]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"status": case.LARGE, "bytes": 20 * GIB}, "B-sam on v5e-8 does not fit: 20.0 GiB, of"),
        ({"status": case.WRONG, "said": "step: all-to-all"}, "wrong: step: all-to-all"),
        ({"status": case.FAILED, "said": "NotImplementedError: 197"}, "failed: NotImplemented"),
    ],
)
def test_each_failure_is_told_with_its_step(changes: dict[str, Any], said: str) -> None:
    (failure,) = table.failures([_result(**changes)])

    assert said in failure


def test_what_is_known_not_to_fit_is_a_failure_where_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = rows.ROWS["B-sam"]._replace(too_large=("v5e-8",))
    monkeypatch.setitem(rows.ROWS, "B-sam", known)

    assert table.failures([_result(status=case.LARGE)]) == []
    assert "too_large" in table.failures([_result()])[0]


def test_a_tpu_that_runs_out_of_memory_is_too_small_and_nothing_worse() -> None:
    error = RuntimeError("Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm.")

    found = case._failure(error, _result(status=case.FAILED), "step")

    assert (found.status, found.bytes) == (case.LARGE, 24.5 * GIB)


def test_a_process_that_dies_is_a_failure_of_its_row() -> None:
    found = accelerators._compile("no such row", "h100", seconds=100)

    assert found.status == case.FAILED
    assert "status 1: " in found.said
    assert "KeyError" in found.said  # Its last words.


def test_a_process_that_takes_too_long_is_ended() -> None:
    found = accelerators._compile("B-sam", "h100", seconds=0.01)

    assert (found.status, found.said) == (case.FAILED, "not compiled in 0.01 seconds")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows=B-sam,B-sma"], r"--rows: nothing is named B-sma; known: .*B-sam"),
        (["--targets=h100,24gb"], r"--targets: nothing is named 24gb; known: .*h100"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["accelerators", *arguments])

    with pytest.raises(SystemExit, match=message):
        accelerators.main()


def test_the_command_tells_which_compiler_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accelerators, "is_installed", lambda target: False)
    monkeypatch.setattr(sys, "argv", ["accelerators", "--rows=*-sam", "--targets=v5e-8"])

    with pytest.raises(SystemExit) as ended:
        accelerators.main()

    assert "libtpu" in str(ended.value)


def test_the_command_fails_with_what_is_not_as_it_should_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    """And keeps all results, of what is named alone."""
    monkeypatch.setattr(accelerators, "is_installed", lambda target: True)
    monkeypatch.setattr(
        accelerators,
        "_compile",
        lambda row, target, seconds: _result(
            row=row, status=case.LARGE if row == "L-sam" else case.FITS
        ),
    )
    file = tmp_path / "table.json"
    arguments = ["--rows=[BL]-sam", "--targets=v5e-8", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", ["accelerators", *arguments])

    with pytest.raises(SystemExit) as ended:
        accelerators.main()

    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "L-sam on v5e-8 does not fit" in printed
    assert "B-sam on" not in printed
    assert file.read_text().count('"row"') == 2


@pytest.mark.parametrize("gpu", [targets.H100, targets.RTX_3090])
def test_a_gpu_is_described_as_xla_takes_it(gpu: targets.Gpu) -> None:
    major, minor = gpu.capability

    assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in gpu.config()
    assert f"device_memory_size: {gpu.memory}" in gpu.config()

"""The tool that compiles on CPUs for accelerators that are absent, and its table."""

import pathlib
import sys
from typing import Any

import jax
import pytest

from remem_jax import mesh
from tests.oracles import peers
from tools import accelerators
from tools.aot import case, collectives, expected, rows, steps, table, targets, teachers

GIB = 2**30
TINY = {
    "compute_dtype": "float32",
    "methods": ("remem",),
    "data.image_size": 32,
    "teacher.batch_size": 8,
    "student.batch_size": 8,
    "information.batch_size": 8,
    "information.seeds": (0,),
}
# timm's names of the networks of `teachers.NETWORKS`.
TIMM = {
    "facebook/dinov3-vits16-pretrain-lvd1689m": "vit_small_patch16_dinov3_qkvb",
    "facebook/dinov2-with-registers-small": "vit_small_patch14_reg4_dinov2",
    "google/siglip2-base-patch16-224": "vit_base_patch16_siglip_224",
    "openai/clip-vit-base-patch16": "vit_base_patch16_clip_quickgelu_224",
    "openai/clip-vit-large-patch14": "vit_large_patch14_clip_quickgelu_224",
}
OPTIONS = "variant=Ti/16,student=mobilenet_v2_035"


def _row(make: Any, **changes: Any) -> rows.Row:
    return rows.Row("tiny", OPTIONS, TINY | changes, make)


def _step(row: rows.Row, devices: int = 2) -> steps.Step:
    subset = mesh.make_mesh(jax.devices()[:devices])
    return row.make(steps.open_run(row.config(), subset, 2**34))


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.slow
def test_two_devices_exchange_only_their_gradients(fsdp: bool) -> None:
    """Compiles for CPUs, whose compiler partitions the work as those of accelerators do."""
    step = _step(_row(steps.teacher, fsdp=fsdp))
    (function,) = step.functions

    operations = collectives.find(function.jitted.lower(*function.arguments).compile().as_text())

    passing = expected.Passing(function.state.params, {}, {}, 2, 2, fsdp)
    assert step.passes == 2  # SAM takes two.
    assert expected.problems(operations, passing) == []
    assert expected.problems(operations, passing._replace(passes=1))
    assert ("all-gather" in {operation.kind for operation in operations}) == fsdp


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize(
    ("make", "names"),
    [
        (steps.distillation, ["augment", "teacher", "student"]),
        (steps.information, ["augment", "teacher", "decoder", "critic"]),
        (steps.evaluation, ["transform", "model", "count"]),
    ],
)
def test_a_step_compiles_the_functions_of_a_run(make: Any, names: list[str]) -> None:
    """Each function is lowered for the outputs of the previous one, on two devices."""
    step = _step(_row(make))

    lowered = [function.jitted.lower(*function.arguments) for function in step.functions]

    assert [function.name for function in step.functions] == names
    trained = [function.name for function in step.functions if function.state is not None]
    assert trained == [name for name in names if name in ("student", "decoder", "critic")]
    held = jax.tree.leaves(step.held)
    for function, module in zip(step.functions, lowered, strict=True):
        assert all(any(array is other for other in held) for array in function.arrays)
        assert "sharding" in module.as_text()


@pytest.mark.parametrize("init", teachers.NETWORKS)
def test_a_teacher_is_the_network_of_its_name(init: str) -> None:
    config = rows.ROWS[f"{teachers.NETWORKS[init].key}-sam"].config()
    expected_model = teachers.NETWORKS[init].make(steps.CLASSES)
    torch, timm = peers.torch(), peers.timm()

    described = steps.checkpoint(config).checkpoint

    assert described.make(classes=steps.CLASSES) == expected_model
    with torch.device("meta"):
        theirs = timm.create_model(TIMM[init], num_classes=steps.CLASSES, img_size=224)
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    assert sum(array.size for array in described.arrays.values()) == parameters


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize("init", teachers.NETWORKS)
def test_the_steps_of_a_teacher_can_be_traced(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = teachers.NETWORKS[init]
    size = network.size._replace(features=24, depth=2, heads=3)
    monkeypatch.setitem(teachers.NETWORKS, init, network._replace(size=size))
    tiny = TINY | {"data.image_size": 2 * size.patch, "teacher.batch_size": 2}
    sam, student = (
        row._replace(settings={**row.settings, **tiny})
        for row in (rows.ROWS[f"{network.key}-{name}"] for name in ("sam", "resnet18"))
    )

    functions = (*_step(sam, 1).functions, *_step(student, 1).functions)

    assert [function.name for function in functions] == ["step", "augment", "teacher", "student"]
    for function in functions:
        function.jitted.lower(*function.arguments)


def test_memory_is_held_arrays_plus_the_largest_function() -> None:
    devices = mesh.make_mesh(jax.devices()[:2])
    replicated = jax.ShapeDtypeStruct((100,), "float32", sharding=mesh.replicated(devices))
    divided = jax.ShapeDtypeStruct((100,), "float32", sharding=mesh.batch_sharding(devices))
    functions = (
        steps.Function("augment", None, (divided,)),
        steps.Function("student", None, (replicated, 3)),
    )
    compiled = [case.Compiled(50, 200, [], 1.0), case.Compiled(70, 400 + 12, [], 1.0)]

    total = case._total(steps.Step(functions, (replicated, divided)), compiled, resident=1000)

    # 12 bytes of the second function are padding.
    assert total == 1000 + 400 + 200 + 70 + 12


def _result(**changes: Any) -> case.Result:
    passed = {"all-reduce": [26, 3 * 2**19]}
    blank = case.Result("B-sam", "v5e-8", case.FITS, "", "blocks recomputed", 3 * GIB, passed, 41.6)
    return blank._replace(**changes)


def test_a_row_shows_memory_and_collectives_of_a_step() -> None:
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


def test_a_step_that_fits_is_not_a_failure() -> None:
    assert table.failures([_result()]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": case.LARGE, "bytes": 20 * GIB}, "B-sam on v5e-8 does not fit: 20.0 GiB, of"),
        ({"status": case.WRONG, "said": "step: all-to-all"}, "wrong: step: all-to-all"),
        ({"status": case.FAILED, "said": "NotImplementedError: 197"}, "failed: NotImplemented"),
    ],
)
def test_each_failure_names_its_step(changes: dict[str, Any], message: str) -> None:
    (failure,) = table.failures([_result(**changes)])

    assert message in failure


def test_a_step_that_is_listed_as_too_large_but_fits_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = rows.ROWS["B-sam"]._replace(too_large=("v5e-8",))
    monkeypatch.setitem(rows.ROWS, "B-sam", known)

    assert table.failures([_result(status=case.LARGE)]) == []
    assert "too_large" in table.failures([_result()])[0]


def test_an_out_of_memory_error_of_a_tpu_means_too_large() -> None:
    error = RuntimeError("Ran out of memory in memory space hbm. Used 24.50G of 15.75G hbm.")

    result = case._failure(error, _result(status=case.FAILED), "step")

    assert (result.status, result.bytes) == (case.LARGE, 24.5 * GIB)


def test_a_crashed_process_is_a_failure_of_its_row() -> None:
    result = accelerators._compile("no such row", "h100", seconds=100)

    assert result.status == case.FAILED
    assert "status 1: " in result.said
    assert "KeyError" in result.said  # The end of its log.


def test_a_process_that_takes_too_long_is_killed() -> None:
    result = accelerators._compile("B-sam", "h100", seconds=0.01)

    assert (result.status, result.said) == (case.FAILED, "not compiled in 0.01 seconds")


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


def test_the_command_names_the_missing_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(accelerators, "is_installed", lambda target: False)
    monkeypatch.setattr(sys, "argv", ["accelerators", "--rows=*-sam", "--targets=v5e-8"])

    with pytest.raises(SystemExit) as ended:
        accelerators.main()

    assert "libtpu" in str(ended.value)


def test_the_command_fails_and_lists_the_failures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    """It also writes all results of the selected rows."""
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
def test_a_gpu_is_described_in_xlas_format(gpu: targets.Gpu) -> None:
    major, minor = gpu.capability

    assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in gpu.config()
    assert f"device_memory_size: {gpu.memory}" in gpu.config()

"""An export is checked before it gets its name, and which student of a run it is of."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from configs import quickstart
from remem_jax import settings
from remem_jax.checks import SettingError
from remem_jax.export import __main__ as command
from remem_jax.export import checking, description, formats, predictors, runs, students
from remem_jax.export.checking import Comparison, Limits
from remem_jax.export.description import Form
from remem_jax.storage import results
from remem_jax.weights import students as files
from tests.export import drawn

NAME = "mobilenet_v2_035"
EXACT = Limits(1e-4, 0.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies of one small batch, measured once; the student by JAX, compiled once."""
    monkeypatch.setattr(checking, "LATENCY_BATCHES", (12,))
    monkeypatch.setattr(checking, "_REPEATS", (1, 1))
    monkeypatch.setattr(predictors, "AT_ONCE", 12)
    drawn_one = drawn.predictor(NAME)
    monkeypatch.setattr(
        predictors,
        "of_student",
        lambda one: drawn_one._replace(source=one.source, described=one.described),
    )


def export(path: pathlib.Path, form: Form, allowed: Limits = EXACT) -> dict[str, Any]:
    folder = path.parent / "selected"
    student = drawn.student(NAME)
    files.save(folder / "student.safetensors", student.variables)
    return students.export(
        student._replace(source=str(folder / "student.safetensors")),
        form,
        path,
        drawn.images(),
        allowed=allowed,
        calibration=drawn.images().pixels,
    )


def corrupted(path: pathlib.Path) -> None:
    """Changes one weight of one kernel in an ONNX file."""
    made = onnx.load(path)
    (first, *_) = [one for one in made.graph.initializer if len(one.dims) == 4]
    array = numpy_helper.to_array(first).copy()
    array.flat[0] += 1
    first.CopyFrom(numpy_helper.from_array(array, first.name))
    onnx.save(made, path)


def test_what_was_checked_is_written_beside_the_export(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out" / "student.onnx"

    found = export(path, Form(fold=True))

    assert json.loads(predictors.record_path(path).read_text()) == found
    assert found["bytes"] == path.stat().st_size
    assert found["check"]["largest_difference"] <= 1e-4
    assert found["check"]["agreement"] == 1
    labels = drawn.images().labels
    right = float(np.mean(drawn.logits(NAME).argmax(-1) == labels))
    assert found["check"]["accuracy"] == found["check"]["student_accuracy"] == right
    assert found["latency_ms"]["export"]["12"] > 0
    assert [one.name for one in path.parent.iterdir() if "unchecked" in one.name] == []


def test_a_file_that_says_something_else_is_refused_and_what_was_there_stays(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(b"the one before")
    write: Callable[..., None] = formats.write

    def write_wrong(student: Any, described: Any, place: pathlib.Path, images: Any) -> None:
        write(student, described, place, images)
        corrupted(place)

    monkeypatch.setattr(formats, "write", write_wrong)

    with pytest.raises(SettingError, match=r"not kept: a logit differs by .*allowed: "):
        export(path, Form())

    assert path.read_bytes() == b"the one before"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["selected", "student.onnx"]
    export(path, Form(), Limits(100.0, 1.0))
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("difference", "largest", "disagreement", "passes"),
    [
        (1e-4, 0.5, 0.0, True),
        (2e-4, 0.5, 0.0, False),
        (1e-3, 10.0, 0.0, True),
        (2e-3, 10.0, 0.0, False),
        (0.0, 10.0, 0.01, False),
        (float("nan"), 1.0, 0.0, False),
    ],
)
def test_only_what_is_within_both_limits_passes(
    difference: float, largest: float, disagreement: float, passes: bool
) -> None:
    found = Comparison("images", difference, largest, disagreement, None, None)
    if passes:
        checking.require_equal(found, EXACT, "It")
    else:
        with pytest.raises(SettingError, match="It does not say what the student says"):
            checking.require_equal(found, EXACT, "It")


def test_no_number_passes_no_limit() -> None:
    found = Comparison("images", float("nan"), 1.0, 0.0, None, None)
    with pytest.raises(SettingError, match="differs by nan"):
        checking.require_equal(found, checking.limits("int8", None, None), "It")


# Runs.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What a run of digits leaves, with two methods, one of them of two seeds."""
    folder = tmp_path_factory.mktemp("run")
    config = quickstart.get_config()
    config.data.image_size = drawn.SIDE
    student = drawn.student(NAME)
    names = ("model", "stem", "image_size", "classes")
    texts = description.texts(student.described)
    metadata = {name: texts[name] for name in names} | {"image_range": "-1 to 1"}
    for name in ("scratch", "remem", "remem_seed_7"):
        path = folder / "selected" / f"{name}_student.safetensors"
        files.save(path, student.variables, metadata=metadata)
    plain = settings.plain(config)
    results.write(folder / "config.json", plain)

    def row(method: str, share: float, seeds: tuple[int, ...]) -> dict[str, Any]:
        return {
            "method": method,
            "student": {"validation": {"top1": share}},
            "teacher": None,
            "seeds": [{"seed": seed} for seed in seeds],
        }

    rows = [row("scratch", 0.5, (0,)), row("remem", 0.8, (3, 7))]
    data = {"metric": "top1", "source_size": [8, 8]}
    results.write(folder / "results.json", {"methods": rows, "data": data, "config": plain})
    return folder


@pytest.mark.parametrize(
    ("method", "seed", "file"),
    [
        ("", None, "remem"),
        ("scratch", None, "scratch"),
        ("remem", 3, "remem"),
        ("remem", 7, "remem_seed_7"),
    ],
)
def test_a_student_is_found_by_method_and_seed(
    run: pathlib.Path, method: str, seed: int | None, file: str
) -> None:
    found = runs.open_student(run, method=method, seed=seed)

    assert pathlib.Path(found.source).name == f"{file}_student.safetensors"
    assert found.described.classes == drawn.CLASSES
    assert found.described.method == file.partition("_")[0]


@pytest.mark.parametrize(
    ("method", "seed", "message"),
    [("sam", None, "must be one of scratch, remem"), ("remem", 5, "must be one of 3, 7")],
)
def test_a_student_that_is_not_there_is_named(
    run: pathlib.Path, method: str, seed: int | None, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        runs.open_student(run, method=method, seed=seed)


def test_a_run_that_is_not_there_or_not_finished_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match="There is no run"):
        runs.open_student(tmp_path / "none")
    with pytest.raises(SettingError, match="is no run's folder"):
        runs.open_student(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingError, match="is not finished"):
        runs.open_student(tmp_path)


def test_the_command_exports_checks_and_says_so(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--format=onnx", "--input=uint8", "--fold", "--check-images=12"]

    code = command.main([str(run), *flags])

    told = capsys.readouterr()
    assert code == 0, told.err
    path = run / "export" / "remem_student_uint8_folded.onnx"
    assert f"{path}: {path.stat().st_size:,} bytes" in told.out
    assert "validation: 12 images: logits differ by at most" in told.out
    record = json.loads(predictors.record_path(path).read_text())["check"]
    assert f"{record['largest_difference']:.2g} (the largest is" in told.out
    largest = np.abs(drawn.predictor(NAME).predict(runs.open_images(run, "validation", 12).pixels))
    assert record["largest_logit"] == pytest.approx(largest.max())
    opened = predictors.open_any(path)
    assert opened.described.method == "remem"
    np.testing.assert_allclose(
        opened.predict(drawn.images().pixels), drawn.logits(NAME), rtol=0, atol=1e-4
    )


def test_the_command_ends_in_one_line(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(run), "--format=safetensors", "--fold"]) == 1
    assert capsys.readouterr().err.startswith("remem_jax: timm's networks have norms")


@pytest.mark.parametrize(("source_size", "expected"), [([64, 64], 64), ([64, 48], 0), (None, 0)])
def test_squares_that_a_run_stored_are_those_that_images_are_resized_to_first(
    run: pathlib.Path, tmp_path: pathlib.Path, source_size: list[int] | None, expected: int
) -> None:
    found = results.read(run / "results.json")
    assert found is not None
    (tmp_path / "selected").symlink_to(run / "selected")
    results.write(
        tmp_path / "results.json",
        found | {"data": {"metric": "top1", "source_size": source_size}},
    )

    described = runs.open_student(tmp_path).described

    assert described.stored_size == expected  # The config's is 64.
    assert description.read(description.texts(described), "texts") == described


def test_images_of_a_run_are_what_its_students_see(run: pathlib.Path) -> None:
    from sklearn import datasets

    found = runs.open_images(run, "test", 5)

    # Bilinear means, here four times as large, stay within a grey level of the digit's own mean.
    means = np.round(datasets.load_digits().images * (255 / 16)).mean(axis=(1, 2))
    assert found.pixels.shape == (5, 32, 32, 3)
    assert found.labels is not None
    for image, label in zip(found.pixels, found.labels, strict=True):
        candidates = means[datasets.load_digits().target == label]
        assert np.abs(candidates - image.mean()).min() < 3

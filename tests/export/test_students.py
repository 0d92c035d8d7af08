"""Exports of students: the checks before a file gets its name, and the choice of the student."""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from remem_jax import settings
from remem_jax.checks import SettingError
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import __main__ as command
from remem_jax.export import (
    checking,
    description,
    destinations,
    formats,
    options,
    predictors,
    runs,
    students,
)
from remem_jax.export import images as image_files
from remem_jax.export.checking import Comparison, Limits
from remem_jax.export.options import Form
from remem_jax.storage import results
from remem_jax.weights import students as files
from remem_jax.workflow import context
from tests import tiny_run
from tests.export import drawn

NAME = "mobilenet_v2_035"
EXACT = Limits(1e-4, 0.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures latency once on one small batch and compiles the JAX student once."""
    monkeypatch.setattr(checking, "LATENCY_BATCHES", (12,))
    monkeypatch.setattr(checking, "_REPEATS", (1, 1))
    monkeypatch.setattr(options, "BATCH_SIZE", 12)
    drawn_predictor = drawn.predictor(NAME)
    monkeypatch.setattr(
        predictors,
        "of_student",
        lambda student: drawn_predictor._replace(
            source=student.source, described=student.described
        ),
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


def corrupt(path: pathlib.Path) -> None:
    """Changes one weight in one kernel of an ONNX file."""
    model = onnx.load(path)
    (first, *_) = [x for x in model.graph.initializer if len(x.dims) == 4]
    array = numpy_helper.to_array(first).copy()
    array.flat[0] += 1
    first.CopyFrom(numpy_helper.from_array(array, first.name))
    onnx.save(model, path)


def test_the_results_of_the_checks_are_written_beside_the_export(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "out" / "student.onnx"

    record = export(path, Form(fold=True))

    assert json.loads(destinations.record_path(path).read_text()) == record
    assert record["bytes"] == path.stat().st_size
    assert record["check"]["largest_difference"] <= 1e-4
    assert record["check"]["agreement"] == 1
    labels = drawn.images().labels
    right = float(np.mean(drawn.logits(NAME).argmax(-1) == labels))
    assert record["check"]["accuracy"] == record["check"]["student_accuracy"] == right
    assert record["latency_ms"]["export"]["12"] > 0
    names = ["selected", path.name, f"{path.name}.json"]
    assert sorted(file.name for file in path.parent.iterdir()) == names


def test_a_wrong_file_is_refused_and_the_earlier_export_stays(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.onnx"
    export(path, Form())
    before = path.read_bytes(), destinations.record_path(path).read_bytes()
    write: Callable[..., None] = formats.write

    def write_wrong(student: Any, described: Any, place: pathlib.Path, images: Any) -> None:
        write(student, described, place, images)
        corrupt(place)

    monkeypatch.setattr(formats, "write", write_wrong)

    with pytest.raises(SettingError, match=r"not kept: a logit differs by .*allowed: "):
        export(path, Form())

    assert (path.read_bytes(), destinations.record_path(path).read_bytes()) == before
    names = ["selected", "student.onnx", "student.onnx.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    export(path, Form(), Limits(100.0, 1.0))
    assert path.read_bytes() != before[0]


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
def test_an_export_must_be_within_both_limits(
    difference: float, largest: float, disagreement: float, passes: bool
) -> None:
    comparison = Comparison("images", difference, largest, disagreement, None, None)
    if passes:
        checking.require_close(comparison, EXACT, "It")
    else:
        with pytest.raises(SettingError, match="It differs from the model that it was made from"):
            checking.require_close(comparison, EXACT, "It")


def test_nan_exceeds_every_limit() -> None:
    comparison = Comparison("images", float("nan"), 1.0, 0.0, None, None)
    with pytest.raises(SettingError, match="differs by nan"):
        checking.require_close(comparison, checking.limits("int8", None, None), "It")


def test_a_rejected_export_states_both_accuracies_and_only_the_limits_that_exist() -> None:
    comparison = Comparison("9 images", 2.0, 20.0, 0.06, 0.925, 0.915)
    with pytest.raises(SettingError) as caught:
        checking.require_close(comparison, checking.limits("int8", None, None), "It")
    text = str(caught.value)
    assert "top-1 accuracy on them is 92.50 %, the model's 91.50 %" in text
    assert "6.00 % of 9 images have another predicted class (allowed: 5 %)" in text
    assert "a logit differs by 2 (the largest is 20)" in text


# Runs.


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The files of a run on digits with two methods, one of them with two seeds."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_run.digits()
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
    content = {"methods": rows, "data": data, "config": plain, "identity": {"key": "c0ffee"}}
    results.write(folder / "results.json", content)
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
    student = runs.open_student(run, method=method, seed=seed)

    assert pathlib.Path(student.source).name == f"{file}_student.safetensors"
    assert student.described.classes == drawn.CLASSES
    assert student.described.method == file.partition("_")[0]


@pytest.mark.parametrize(
    ("method", "seed", "message"),
    [("sam", None, "must be one of scratch, remem"), ("remem", 5, "must be one of 3, 7")],
)
def test_a_missing_student_is_named(
    run: pathlib.Path, method: str, seed: int | None, message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        runs.open_student(run, method=method, seed=seed)


def test_a_missing_or_unfinished_run_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match="There is no run"):
        runs.open_student(tmp_path / "none")
    with pytest.raises(SettingError, match="is not the folder of a run"):
        runs.open_student(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingError, match="is not finished"):
        runs.open_student(tmp_path)


def test_the_command_exports_checks_and_prints_the_result(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--format=onnx", "--input=uint8", "--fold", "--check-images=12"]

    code = command.main([str(run), *flags])

    printed = capsys.readouterr()
    assert code == 0, printed.err
    path = run / "export" / "remem_student_uint8_folded.onnx"
    assert f"{path}: {path.stat().st_size:,} bytes" in printed.out
    assert "validation: 12 images: logits differ by at most" in printed.out
    record = json.loads(destinations.record_path(path).read_text())["check"]
    assert f"{record['largest_difference']:.2g} (the largest is" in printed.out
    largest = np.abs(
        drawn.predictor(NAME).predict(image_files.open_images(run, "validation", 12).pixels)
    )
    assert record["largest_logit"] == pytest.approx(largest.max())
    opened = predictors.open_any(path)
    assert opened.described.method == "remem"
    np.testing.assert_allclose(
        opened.predict(drawn.images().pixels), drawn.logits(NAME), rtol=0, atol=1e-4
    )


def test_the_command_fails_with_one_line(
    run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(run), "--format=safetensors", "--fold"]) == 1
    assert capsys.readouterr().err.startswith(
        "remem_jax: --format=safetensors is for timm's networks"
    )


def copied(run: pathlib.Path, folder: pathlib.Path, **data: Any) -> pathlib.Path:
    """Copies the run with changed facts about its data."""
    content = results.read(run / "results.json")
    assert content is not None
    for name in ("selected", "config.json"):
        (folder / name).symlink_to(run / name)
    results.write(folder / "results.json", content | {"data": {"metric": "top1", **data}})
    return folder


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"preprocessing": {"image_size": 32, "stored_size": 64}, "source_size": [64, 64]}, 64),
        # Images that had this size from the start.
        ({"preprocessing": {"image_size": 32, "stored_size": 0}, "source_size": [64, 64]}, 0),
        ({"preprocessing": {"image_size": 32, "stored_size": 0, "crop": 0.875}}, (0, 0.875)),
        # A run from before preprocessing was recorded.
        ({"source_size": [64, 64]}, 64),
        ({"source_size": [64, 48]}, 0),
        ({"source_size": None}, 0),
    ],
)
def test_preprocessing_is_read_from_the_run_and_its_file(
    run: pathlib.Path,
    tmp_path: pathlib.Path,
    data: dict[str, Any],
    expected: int | tuple[int, float],
) -> None:
    described = runs.open_student(copied(run, tmp_path, **data)).described

    stored_size, crop = expected if isinstance(expected, tuple) else (expected, 0.0)
    assert described.preprocessing == Preprocessing(32, stored_size, crop)  # The config has 64.
    assert description.read(description.texts(described), "texts") == described


def test_metadata_of_the_file_take_precedence_over_old_results(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder = copied(run, tmp_path, source_size=[64, 64])
    (folder / "selected").unlink()
    student = drawn.student(NAME)
    path = folder / "selected" / "remem_student.safetensors"
    files.save(path, student.variables, metadata=description.texts(student.described))

    assert runs.open_student(folder).described.stored_size == 0
    assert runs.open_file(path).described.stored_size == 0


def test_all_exports_of_a_student_have_its_identity(
    run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    student = runs.open_student(run, method="scratch")
    expected = hashlib.sha256(pathlib.Path(student.source).read_bytes()).hexdigest()[:16]

    for form in (Form("safetensors"), Form("safetensors", precision="float16")):
        path = tmp_path / f"{form.precision}.safetensors"
        formats.write(student, student.described._replace(form=form), path, np.zeros(0))
        described = predictors.open_any(path).described
        assert (described.identity, described.run) == (expected, "c0ffee")


@pytest.mark.parametrize("names", [("a", "b"), ("caf\xe9", "line\nbreak", "\udcff", '["a", "b"]')])
def test_class_names_can_be_read_again(names: tuple[str, ...]) -> None:
    described = drawn.student(NAME).described._replace(classes=names)
    texts = description.texts(described)

    assert json.loads(texts["classes"]) == list(names)
    assert description.read(texts, "texts").classes == names


def test_class_names_of_old_files_are_lines() -> None:
    texts = {"model": NAME, "image_size": "32", "classes": "cat\n[1]\n007"}

    assert description.read(texts, "texts").classes == ("cat", "[1]", "007")


# Images.


def test_images_other_than_the_runs_are_refused(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = copied(run, tmp_path, fingerprint="another")

    with pytest.raises(SettingError, match=r"are not those that the run .* give --images=FOLDER"):
        image_files.open_images(folder, "validation", 5)


def test_missing_images_of_the_run_can_be_replaced(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    folder = copied(run, tmp_path / "run")
    (folder / "config.json").unlink()
    config = results.read(run / "config.json")
    assert config is not None
    config["data"] |= {"name": "folder", "path": "gone"}
    results.write(folder / "config.json", config)
    pixels = drawn.images().pixels
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.fromarray(pixels[i]).save(tmp_path / "images" / f"{i:02}.png")
    (tmp_path / "images" / "03.png").write_text("no image")

    assert command.main([str(folder)]) == 1
    assert "or give --images=FOLDER" in capsys.readouterr().err
    flags = [f"--images={tmp_path / 'images'}", "--precision=int8", "--calibration-images=12"]
    code = command.main([str(folder), *flags, "--allowed-disagreement=1"])

    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "skipped, because they cannot be read: 1 images" in printed.out
    record = json.loads((folder / "export" / "remem_student_int8.onnx.json").read_text())
    assert record["check"]["images"].endswith(": 11 images")
    (skipped,) = record["check"]["skipped"]
    assert skipped == f"{tmp_path / 'images' / '03.png'} cannot be decoded: not an image."


@pytest.mark.parametrize("cache", ["there", None])
def test_the_runs_cache_is_kept(
    run: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: str | None,
) -> None:
    folder = copied(run, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["cache"] = cache
    if cache is None:  # As in older versions.
        del config["data"]["cache"]
    results.write(folder / "config.json", config)
    asked = []

    def load(config: Any, settings: Any, mesh: Any) -> Any:
        asked.append(settings.cache)
        raise SettingError("enough")

    monkeypatch.setattr(context, "load_data", load)
    with pytest.raises(SettingError, match="enough"):
        image_files.open_images(folder, "validation", 5)

    assert asked == [cache or ""]


# Options.


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--format=timm", "--precision=float32"], "has no use for --precision"),
        (["--format=augreg", "--seed=0", "--fold"], "has no use for --seed, --fold"),
        (["--format=big_vision", "--batch=1", "--input=float"], "no use for --input, --batch"),
        (["--format=timm", "--calibration-images=9"], "has no use for --calibration-images"),
        (["--format=safetensors", "--input=uint8"], "has no use for --input"),
        (["--format=saved-tree", "--batch=0"], "has no use for --batch"),
        (["--precision=float16", "--calibration-images=9"], "is only for --precision=int8"),
        (["--images=.", "--split=test"], "leave out one of them"),
        (["--method=remem", "--seed=99"], "must be one of 3, 7; got 99"),
        (["--check-images=-1"], "--check-images must be at least 0"),
    ],
)
def test_an_option_without_effect_is_refused(
    run: pathlib.Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(run), *flags]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_full_disk_keeps_the_existing_export(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.safetensors"
    export(path, Form("safetensors"))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "save", lambda *given, **named: full())
    with pytest.raises(SettingError, match=r"cannot be written \(No space left on device\)"):
        students.export(
            drawn.student(NAME),
            Form("safetensors"),
            path,
            drawn.images(),
            allowed=EXACT,
            calibration=np.zeros(0),
        )

    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([*before, "selected"])


def test_images_of_a_run_are_preprocessed_like_for_its_students(run: pathlib.Path) -> None:
    from sklearn import datasets

    images = image_files.open_images(run, "test", 5)

    # Bilinear resizing, here to four times the size, keeps the mean within one grey level.
    means = np.round(datasets.load_digits().images * (255 / 16)).mean(axis=(1, 2))
    assert images.pixels.shape == (5, 32, 32, 3)
    assert images.labels is not None
    for image, label in zip(images.pixels, images.labels, strict=True):
        candidates = means[datasets.load_digits().target == label]
        assert np.abs(candidates - image.mean()).min() < 3

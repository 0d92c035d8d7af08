"""The command `predict`: its predictions, the choice of files, and unreadable files."""

import csv
import io
import json
import os
import pathlib
import shutil
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import special

from remem_jax import data, predict
from remem_jax.checks import SettingError
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.export import command, description, inference, predictions, predictors
from remem_jax.export import images as image_files
from remem_jax.export.options import Form
from remem_jax.export.predictors import Predictor
from remem_jax.storage import results
from remem_jax.weights import students
from tests.export import drawn

NAME = "mobilenet_v2_035"
IMAGES = 12
BEFORE = "file,rank,class,probability\na.png,1,cat,1\n"  # An earlier file of predictions.
FORMS = {"onnx": Form(input="uint8", batch=5, fold=True), "safetensors": Form("safetensors")}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses one compiled JAX student, whichever file it is read from."""
    predictor = drawn.predictor(NAME)
    monkeypatch.setattr(
        predictors,
        "of_student",
        lambda student: predictor._replace(source=student.source, described=student.described),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The images of `drawn` as files, named by their index."""
    directory = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(drawn.images().pixels):
        Image.fromarray(pixels).save(directory / f"{i:02}.png")
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The files of a run that predictions need, and two exports of its student."""
    directory = tmp_path_factory.mktemp("run")
    student = drawn.student(NAME)
    texts = description.texts(student.described)
    students.save(
        directory / "selected" / "scratch_student.safetensors", student.variables, metadata=texts
    )
    row = {"method": "scratch", "student": {"validation": {"top1": 0.5}}}
    facts = {"metric": "top1", "source_size": None}
    config = {"data": {"stored_size": 64}}
    results.write(directory / "results.json", {"methods": [row], "data": facts, "config": config})
    for form in FORMS.values():
        drawn.write(NAME, form, directory)
    return directory


def means(sizes: list[int]) -> Predictor:
    """Returns a model of the mean red, green and blue; it records its batch sizes in `sizes`."""

    def logits(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return 4 * batch.mean(axis=(1, 2))

    described = description.Description("none", "none", ("red", "green", "blue"), 8, Form())
    return Predictor(logits, described, "means")


def grey_levels(path: pathlib.Path) -> np.ndarray:
    return np.asarray(Image.open(path)).mean(axis=(0, 1)) / 127.5 - 1


def run_command(model: pathlib.Path, *arguments: Any, code: int = 0) -> None:
    assert predict.main([str(model), *map(str, arguments)]) == code


# Predictions.


@pytest.mark.parametrize("model", ["", *(f"student.{name}" for name in FORMS)])
def test_every_model_gives_the_probabilities_of_the_student(
    run: pathlib.Path, folder: pathlib.Path, model: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    expected = special.softmax(drawn.logits(NAME).astype(np.float64), axis=-1)

    run_command(run / model, folder, "--format=json", "--batch_size=12")

    content = json.loads(capsysbinary.readouterr().out)
    assert [image["file"] for image in content["images"]] == [
        str(folder / f"{i:02}.png") for i in range(IMAGES)
    ]
    for image, row in zip(content["images"], expected, strict=True):
        order = np.argsort(-row)
        assert [top["class"] for top in image["top"]] == [drawn.CLASSES[i] for i in order]
        probabilities = [top["probability"] for top in image["top"]]
        np.testing.assert_allclose(probabilities, row[order], rtol=0, atol=1e-4)


@pytest.mark.parametrize("crop", [0.0, 0.875])
def test_images_are_preprocessed_as_in_evaluation(
    tmp_path: pathlib.Path, run: pathlib.Path, rng: np.random.Generator, crop: float
) -> None:
    for i in range(2 * IMAGES):
        height, width = rng.integers(20, 90, 2)
        pixels = np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((18, 18, 1))).astype(np.uint8)
        split, classes, suffix = (
            ("train", "test")[i % 2],
            "ab"[i // 2 % 2],
            ("png", "jpg")[i % 3 > 0],
        )
        path = tmp_path / split / classes / f"{i:02}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:height, :width]).save(path)
    source = data.open_source("folder", path=str(tmp_path), data_dir="")
    storage = data.Storage("streamed", 64, 1.0, str(tmp_path / ".cache"), 1)
    dataset = data.load(
        source, storage, data.Rules(validation=0.2, seed=0, near_duplicates=False), corrupt_limit=0
    )
    loader = data.make_loader(
        dataset,
        Preprocessing(drawn.SIDE, crop=crop),
        crop_area=(1.0, 1.0),
        balance=0.0,
        seed=0,
        threads=1,
        workers=0,
    )
    (batch,) = loader.evaluation("test", IMAGES)
    inputs = np.asarray(loader.evaluation_transform(jax.random.key(0), batch.image))
    expected = special.softmax(drawn.predictor(NAME).predict(inputs), axis=-1)

    model = predictors.open_any(run)
    model = model._replace(described=model.described._replace(crop=crop))
    paths = image_files.image_paths(tmp_path / "test")
    result = inference.predict(model, paths, top=len(drawn.CLASSES), batch_size=IMAGES)

    for top, row in zip(result.top.values(), expected, strict=True):
        for classes, probability in top:
            # NumPy scales grey levels here and XLA there; they round differently.
            assert probability == pytest.approx(row[drawn.CLASSES.index(classes)], abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_predictions_do_not_depend_on_the_batch_size(folder: pathlib.Path, batch_size: int) -> None:
    sizes: list[int] = []
    paths = sorted(folder.iterdir())

    result = inference.predict(means(sizes), paths, top=3, batch_size=batch_size)

    assert set(sizes) == {min(batch_size, IMAGES)}  # Else JAX compiles the last one again.
    assert sum(sizes) - IMAGES < batch_size
    assert list(result.top) == list(map(str, paths))
    for path, top in result.top.items():
        expected = special.softmax(4 * grey_levels(pathlib.Path(path)))
        for classes, probability in top:
            i = ("red", "green", "blue").index(classes)
            assert probability == pytest.approx(expected[i], abs=0.02)  # Rounded to grey levels.


def test_csv_keeps_any_name(
    run: pathlib.Path, tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    names = ['comma, "quote".png', "line\nbreak.png", "=1+1.png", "café.png", os.fsdecode(b"\xff")]
    for name in names:
        (tmp_path / name).write_bytes((folder / "03.png").read_bytes())
    out = tmp_path / "out" / "found.csv"

    run_command(
        run / "student.onnx", *(tmp_path / name for name in names), "--top=2", f"--out={out}"
    )

    head, *rows = csv.reader(io.StringIO(out.read_text(encoding="utf-8"), newline=""))
    assert head == ["file", "rank", "class", "probability"]
    printed = [*names[:-1], r"\udcff"]
    assert [row[0] for row in rows] == [str(tmp_path / name) for name in printed for _ in range(2)]
    assert [row[1] for row in rows] == ["1", "2"] * len(names)
    best = np.argsort(-drawn.logits(NAME)[3])[:2]
    assert [row[2] for row in rows] == [drawn.CLASSES[i] for i in best] * len(names)


# Choice of files.


def test_folders_patterns_and_files_yield_each_image_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.JPG", "b/10.png", "b/a/1.webp", "b/.hidden/1.png", "b/notes.txt", "odd[1].x"):
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).touch()
    pathlib.Path("empty").mkdir()
    pathlib.Path("b/a/up").symlink_to(tmp_path / "b")

    images, empty = image_files.find(
        ["b/10.png", "b", "**/*.webp", "./b/2.JPG", "odd[1].x", "none.png"]
    )
    without, reasons = image_files.find(["empty", "*.tif"])

    expected = ["b/10.png", "b/2.JPG", "b/a/1.webp", "odd[1].x", "none.png"]
    assert list(map(str, images)) == expected
    assert not empty
    assert without == []
    assert list(reasons) == ["empty", "*.tif"]


def test_a_pattern_may_match_folders(tmp_path: pathlib.Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    images, _ = image_files.find([str(tmp_path / "[ab]")])

    assert [path.name for path in images] == ["1.png", "2.png"]


def test_skipped_files_in_folders_are_counted(tmp_path: pathlib.Path) -> None:
    for name in ("1.heic", "2.tif", "notes.txt", "3.psd", ".hidden.png"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    skipped: Counter[str] = Counter()

    images, _ = image_files.find([str(tmp_path)], skipped)

    assert [path.name for path in images] == ["1.heic", "2.tif"]
    assert skipped == {".txt": 1, ".psd": 1, "hidden": 1, "not a regular file": 1}


def test_skipped_files_are_reported(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capfd: Any
) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "0.png").write_bytes((folder / "00.png").read_bytes())

    run_command(run / "student.onnx", tmp_path)

    assert "remem_jax: 1 file skipped (.txt: 1)\n" in capfd.readouterr().err


def test_a_pipe_does_not_block(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")

    with pytest.raises(SettingError, match="cannot be read: not a regular file"):
        image_files.read_image(tmp_path / "pipe.png", Preprocessing(8))


# Unreadable files.


def test_unreadable_files_are_listed_and_the_others_classified(
    run: pathlib.Path,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "\x1b[2Jbroken.png").write_bytes((folder / "00.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "found.json"
    given = (tmp_path, tmp_path / "empty", tmp_path / "gone.png", folder / "04.png")

    run_command(run / "student.onnx", *given, "--format=json", f"--out={out}")

    content = json.loads(out.read_text())
    assert [file["file"] for file in content["images"]] == [str(folder / "04.png")]
    reasons = {pathlib.Path(file["file"]).name: file["reason"] for file in content["failed"]}
    assert reasons["text.png"] == "cannot be decoded: not an image."
    assert reasons["gone.png"] == "cannot be read: No such file or directory."
    assert reasons["empty"].startswith("contains no images")
    assert reasons["\x1b[2Jbroken.png"].startswith("cannot be decoded")
    log = capfd.readouterr().err
    assert f"{tmp_path / 'text.png'} cannot be decoded: not an image.\n" in log
    assert r"\x1b[2Jbroken.png cannot be decoded" in log  # Escaped, so that it moves no cursor.


def test_nothing_is_written_if_no_image_can_be_read(
    run: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    out = tmp_path / "found.csv"
    out.write_text(BEFORE)

    run_command(run / "student.onnx", tmp_path / "text.png", f"--out={out}", code=1)

    assert out.read_text() == BEFORE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.csv", "text.png"]
    assert capfd.readouterr().err.endswith("None of the images can be read: give others.\n")


@pytest.mark.parametrize(
    ("model", "flag", "message"),
    [
        ("", "--top=0", "--top must be at least 1"),
        ("", "--batch_size=0", "--batch_size must be at least 1"),
        ("", "--out=.", "is a folder; set --out to a file"),
        ("", "--method=sam", "must be one of scratch"),
        ("student.onnx", "--method=scratch", "contains a single student: leave out --method"),
        ("none.onnx", "--top=1", "There is no export"),
        ("none", "--top=1", "There is no run"),
    ],
)
def test_errors_are_one_line(
    run: pathlib.Path,
    folder: pathlib.Path,
    model: str,
    flag: str,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run_command(run / model, folder, flag, code=1)

    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("remem_jax: ")
    assert message in line


def test_the_error_for_a_folder_without_permission_gives_the_reason(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def deny(path: Any) -> Any:
        if pathlib.Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)  # Root may list any folder.

    assert image_files.image_paths(tmp_path) == [tmp_path / "closed"]
    with pytest.raises(SettingError, match="closed cannot be read"):
        image_files.read_image(tmp_path / "closed", Preprocessing(8))


# Interrupted runs.


class Stopping:
    """A model that fails once, in its second batch, and counts the images it received."""

    def __init__(self, error: BaseException) -> None:
        """Sets the error that it raises."""
        self.error: BaseException | None = error
        self.images = 0

    def open(self, path: pathlib.Path, **options: Any) -> Predictor:
        """Replaces `predictors.open_any`."""
        del options

        def logits(batch: np.ndarray) -> np.ndarray:
            if self.images and self.error:
                error, self.error = self.error, None
                raise error
            self.images += len(batch)
            return 4 * batch.mean(axis=(1, 2))

        described = description.Description("none", "none", ("red", "green", "=blue"), 8, Form())
        return Predictor(logits, described, str(path))


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stopping:
    """The command's model, stopped by the error that a test requests, by default Ctrl-C."""
    model = Stopping(getattr(request, "param", KeyboardInterrupt()))
    monkeypatch.setattr(predictors, "open_any", model.open)
    return model


@pytest.fixture
def given(run: pathlib.Path, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The folders of the exports and of the images."""
    return run, folder


def stopped(
    run: pathlib.Path, folder: pathlib.Path, *more: str, code: int = 130, model: str = "onnx"
) -> None:
    run_command(run / f"student.{model}", folder, "--batch_size=5", *more, code=code)


@pytest.mark.parametrize("form", predictions.FORMATS)
@pytest.mark.parametrize(
    ("stopping", "code"),
    [(KeyboardInterrupt(), 130), (command.Terminated(), 143), (OSError(28, "No space left"), 1)],
    indirect=["stopping"],
)
def test_finished_predictions_are_kept_and_the_same_command_resumes(
    given: tuple[pathlib.Path, pathlib.Path],
    tmp_path: pathlib.Path,
    stopping: Stopping,
    code: int,
    form: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (run, folder), out, partial = given, tmp_path / "found", tmp_path / "found.partial"
    flags = (f"--out={out}", f"--format={form}")

    stopped(run, folder, *flags, code=code)

    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(f"; 5 of 12 images are in {partial}; the same command resumes.")
    assert not out.exists()
    stopped(run, folder, *flags, code=0)
    assert f"5 of 12 predictions are from {partial}." in capfd.readouterr().err
    assert stopping.images == IMAGES + (-7 % 5)  # The last batch is padded.
    assert list(tmp_path.iterdir()) == [out]
    continued = out.read_bytes()
    stopped(run, folder, *flags, code=0)  # Starts over and replaces the previous file.
    assert out.read_bytes() == continued
    assert stopping.images == 2 * IMAGES + (-7 % 5) + (-12 % 5)


def test_changed_images_are_read_again(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, stopping: Stopping
) -> None:
    copies = tmp_path / "copies"
    shutil.copytree(folder, copies)
    out = tmp_path / "found.csv"
    stopped(run, copies, f"--out={out}")
    Image.fromarray(np.full((9, 9, 3), (255, 0, 0), np.uint8)).save(copies / "00.png")

    stopped(run, copies, f"--out={out}", "--top=5", code=0)

    assert stopping.images == 5 + 2 * 5  # Eight images in two batches of five.
    rows = list(csv.reader(out.read_text().splitlines()))
    assert next(row[2] for row in rows[1:] if row[0].endswith("00.png")) == "red"
    assert {row[2] for row in rows[1:]} == {"red", "green", "'=blue"}


def test_a_truncated_line_costs_one_image(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, stopping: Stopping
) -> None:
    out, partial = tmp_path / "found.csv", tmp_path / "found.csv.partial"
    stopped(run, folder, f"--out={out}")
    partial.write_bytes(partial.read_bytes()[:-9])

    stopped(run, folder, f"--out={out}", code=0)

    assert len(out.read_text().splitlines()) == 1 + 3 * IMAGES
    assert stopping.images == 5 + 2 * 5


@pytest.mark.parametrize(("model", "flags"), [("onnx", ("--top=1",)), ("safetensors", ())])
@pytest.mark.usefixtures("stopping")
def test_a_partial_file_of_another_command_is_neither_used_nor_deleted(
    given: tuple[pathlib.Path, pathlib.Path],
    tmp_path: pathlib.Path,
    model: str,
    flags: tuple[str, ...],
    capfd: pytest.CaptureFixture[str],
) -> None:
    run, folder = given
    out, partial = tmp_path / "found.csv", tmp_path / "found.csv.partial"
    stopped(run, folder, f"--out={out}")
    before = partial.read_bytes()

    stopped(run, folder, f"--out={out}", *flags, code=1, model=model)

    assert "holds predictions of another model or --top" in capfd.readouterr().err
    assert partial.read_bytes() == before
    assert not out.exists()


@pytest.mark.parametrize("content", ["thesis", '{"a": 1}', "[]\n"])
def test_an_unrelated_partial_file_stays(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, content: str
) -> None:
    partial = tmp_path / "found.csv.partial"
    partial.write_text(content)

    run_command(run / "student.onnx", folder, f"--out={tmp_path / 'found.csv'}", code=1)

    assert partial.read_text() == content
    assert list(tmp_path.iterdir()) == [partial]


@pytest.mark.parametrize("form", predictions.FORMATS)
def test_standard_output_contains_the_finished_predictions(
    run: pathlib.Path,
    folder: pathlib.Path,
    stopping: Stopping,
    form: str,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    stopped(run, folder, f"--format={form}")

    output, log = capfdbinary.readouterr()
    if form == "csv":
        assert len(output.splitlines()) == 1 + 3 * 5
    else:
        assert len(json.loads(output)["images"]) == 5
    assert b"stopped; 5 of 12 images were written." in log


@pytest.mark.parametrize("form", predictions.FORMATS)
def test_standard_output_on_a_full_disk_is_one_line(
    run: pathlib.Path,
    folder: pathlib.Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", full)
        run_command(run / "student.onnx", folder, f"--format={form}", code=1)

    (line,) = capfd.readouterr().err.splitlines()
    assert "Standard output cannot be written (No space left on device)" in line


def test_a_tilde_is_expanded(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    (tmp_path / "run").symlink_to(run)

    run_command(pathlib.Path("~/run/student.onnx"), "00.png", "--out=~/found.csv")

    assert (tmp_path / "found.csv").exists()
    assert not (folder / "~").exists()

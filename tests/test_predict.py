"""Prediction by the command: what it says, of which files, and what it does with bad ones."""

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
    """The student by JAX, whichever file it comes from."""
    one = drawn.predictor(NAME)
    monkeypatch.setattr(
        predictors,
        "of_student",
        lambda student: one._replace(source=student.source, described=student.described),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The images of `drawn` as files, named in their order."""
    place = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(drawn.images().pixels):
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    return place


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """What of a run is needed to predict by it, and two exports of its student."""
    place = tmp_path_factory.mktemp("run")
    student = drawn.student(NAME)
    texts = description.texts(student.described)
    students.save(
        place / "selected" / "scratch_student.safetensors", student.variables, metadata=texts
    )
    row = {"method": "scratch", "student": {"validation": {"top1": 0.5}}}
    facts = {"metric": "top1", "source_size": None}
    config = {"data": {"stored_size": 64}}
    results.write(place / "results.json", {"methods": [row], "data": facts, "config": config})
    for form in FORMS.values():
        drawn.write(NAME, form, place)
    return place


def means(sizes: list[int]) -> Predictor:
    """A model that says how red, green and blue images are; notes the sizes of its batches."""

    def logits(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return 4 * batch.mean(axis=(1, 2))

    described = description.Description("none", "none", ("red", "green", "blue"), 8, Form())
    return Predictor(logits, described, "means")


def grey_levels(path: pathlib.Path) -> np.ndarray:
    return np.asarray(Image.open(path)).mean(axis=(0, 1)) / 127.5 - 1


def told(model: pathlib.Path, *arguments: Any, code: int = 0) -> None:
    assert predict.main([str(model), *map(str, arguments)]) == code


# What it says.


@pytest.mark.parametrize("model", ["", *(f"student.{name}" for name in FORMS)])
def test_every_model_gives_the_probabilities_of_the_student(
    run: pathlib.Path, folder: pathlib.Path, model: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    expected = special.softmax(drawn.logits(NAME).astype(np.float64), axis=-1)

    told(run / model, folder, "--format=json", "--batch_size=12")

    found = json.loads(capsysbinary.readouterr().out)
    assert [one["file"] for one in found["images"]] == [
        str(folder / f"{i:02}.png") for i in range(IMAGES)
    ]
    for one, row in zip(found["images"], expected, strict=True):
        order = np.argsort(-row)
        assert [top["class"] for top in one["top"]] == [drawn.CLASSES[i] for i in order]
        shares = [top["probability"] for top in one["top"]]
        np.testing.assert_allclose(shares, row[order], rtol=0, atol=1e-4)  # As logits do.


def test_images_are_seen_as_in_the_evaluation_of_a_run(
    tmp_path: pathlib.Path, run: pathlib.Path, rng: np.random.Generator
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
    dataset = data.load(source, storage, validation=0.2, seed=0, corrupt_limit=0)
    loader = data.make_loader(
        dataset, image_size=drawn.SIDE, crop_area=(1.0, 1.0), seed=0, threads=1, workers=0
    )
    (batch,) = loader.evaluation("test", IMAGES)
    seen = np.asarray(loader.evaluation_transform(jax.random.key(0), batch.image))
    expected = special.softmax(drawn.predictor(NAME).predict(seen), axis=-1)

    model = predictors.open_any(run)
    paths = image_files.image_paths(tmp_path / "test")
    found = inference.predict(model, paths, top=len(drawn.CLASSES), batch_size=IMAGES)

    for top, row in zip(found.top.values(), expected, strict=True):
        for classes, share in top:
            # Grey levels are scaled by NumPy here and by XLA there, which round.
            assert share == pytest.approx(row[drawn.CLASSES.index(classes)], abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_batches_of_any_size_say_the_same(folder: pathlib.Path, batch_size: int) -> None:
    sizes: list[int] = []
    paths = sorted(folder.iterdir())

    found = inference.predict(means(sizes), paths, top=3, batch_size=batch_size)

    assert set(sizes) == {min(batch_size, IMAGES)}  # The last one too, or JAX compiles again.
    assert sum(sizes) - IMAGES < batch_size
    assert list(found.top) == list(map(str, paths))
    for path, top in found.top.items():
        expected = special.softmax(4 * grey_levels(pathlib.Path(path)))
        for classes, share in top:
            i = ("red", "green", "blue").index(classes)
            assert share == pytest.approx(expected[i], abs=0.02)  # Rounded to grey levels.


def test_csv_keeps_any_name(
    run: pathlib.Path, tmp_path: pathlib.Path, folder: pathlib.Path
) -> None:
    names = ['comma, "quote".png', "line\nbreak.png", "=1+1.png", "café.png", os.fsdecode(b"\xff")]
    for name in names:
        (tmp_path / name).write_bytes((folder / "03.png").read_bytes())
    out = tmp_path / "out" / "found.csv"

    told(run / "student.onnx", *(tmp_path / name for name in names), "--top=2", f"--out={out}")

    head, *rows = csv.reader(io.StringIO(out.read_text(encoding="utf-8"), newline=""))
    assert head == ["file", "rank", "class", "probability"]
    shown = [*names[:-1], r"\udcff"]
    assert [row[0] for row in rows] == [str(tmp_path / name) for name in shown for _ in range(2)]
    assert [row[1] for row in rows] == ["1", "2"] * len(names)
    best = np.argsort(-drawn.logits(NAME)[3])[:2]
    assert [row[2] for row in rows] == [drawn.CLASSES[i] for i in best] * len(names)


# Which files.


def test_folders_patterns_and_files_give_each_image_once(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b/2.JPG", "b/10.png", "b/a/1.webp", "b/.hidden/1.png", "b/notes.txt", "odd[1].x"):
        pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
        pathlib.Path(name).touch()
    pathlib.Path("empty").mkdir()
    pathlib.Path("b/a/up").symlink_to(tmp_path / "b")

    found, empty = image_files.find(
        ["b/10.png", "b", "**/*.webp", "./b/2.JPG", "odd[1].x", "none.png"]
    )
    without, reasons = image_files.find(["empty", "*.tif"])

    expected = ["b/10.png", "b/2.JPG", "b/a/1.webp", "odd[1].x", "none.png"]
    assert list(map(str, found)) == expected
    assert not empty
    assert without == []
    assert list(reasons) == ["empty", "*.tif"]


def test_a_pattern_may_match_folders(tmp_path: pathlib.Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    found, _ = image_files.find([str(tmp_path / "[ab]")])

    assert [path.name for path in found] == ["1.png", "2.png"]


def test_what_is_passed_over_in_folders_is_counted(tmp_path: pathlib.Path) -> None:
    for name in ("1.heic", "2.tif", "notes.txt", "3.psd", ".hidden.png"):
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    passed_over: Counter[str] = Counter()

    found, _ = image_files.find([str(tmp_path)], passed_over)

    assert [path.name for path in found] == ["1.heic", "2.tif"]
    assert passed_over == {".txt": 1, ".psd": 1, "hidden": 1, "not a regular file": 1}


def test_what_is_passed_over_is_told(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capfd: Any
) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / "0.png").write_bytes((folder / "00.png").read_bytes())

    told(run / "student.onnx", tmp_path)

    assert "remem_jax: 1 file skipped (.txt: 1)\n" in capfd.readouterr().err


def test_a_pipe_is_not_waited_for(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")

    with pytest.raises(SettingError, match="cannot be read: not a regular file"):
        image_files.read_image(tmp_path / "pipe.png", Preprocessing(8))


# Bad ones.


def test_what_cannot_be_read_is_listed_and_the_others_are_classified(
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

    told(run / "student.onnx", *given, "--format=json", f"--out={out}")

    found = json.loads(out.read_text())
    assert [one["file"] for one in found["images"]] == [str(folder / "04.png")]
    reasons = {pathlib.Path(one["file"]).name: one["reason"] for one in found["failed"]}
    assert reasons["text.png"] == "cannot be decoded: not an image."
    assert reasons["gone.png"] == "cannot be read: No such file or directory."
    assert reasons["empty"].startswith("holds no images")
    assert reasons["\x1b[2Jbroken.png"].startswith("cannot be decoded")
    log = capfd.readouterr().err
    assert f"{tmp_path / 'text.png'} cannot be decoded: not an image.\n" in log
    assert r"\x1b[2Jbroken.png cannot be decoded" in log  # And moves no cursor.


def test_where_nothing_can_be_read_nothing_is_written(
    run: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    out = tmp_path / "found.csv"
    out.write_text(BEFORE)

    told(run / "student.onnx", tmp_path / "text.png", f"--out={out}", code=1)

    assert out.read_text() == BEFORE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.csv", "text.png"]
    assert capfd.readouterr().err.endswith("There is no image that can be read: give others.\n")


@pytest.mark.parametrize(
    ("model", "flag", "message"),
    [
        ("", "--top=0", "--top must be at least 1"),
        ("", "--batch_size=0", "--batch_size must be at least 1"),
        ("", "--out=.", "is a folder; set --out to a file"),
        ("", "--method=sam", "must be one of scratch"),
        ("student.onnx", "--method=scratch", "is one student: leave out --method"),
        ("none.onnx", "--top=1", "There is no export"),
        ("none", "--top=1", "There is no run"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(
    run: pathlib.Path,
    folder: pathlib.Path,
    model: str,
    flag: str,
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    told(run / model, folder, flag, code=1)

    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("remem_jax: ")
    assert message in line


def test_the_reason_of_a_folder_that_may_not_be_listed_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refused(path: Any) -> Any:
        if pathlib.Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)  # Root may list every folder.

    assert image_files.image_paths(tmp_path) == [tmp_path / "closed"]
    with pytest.raises(SettingError, match="closed cannot be read"):
        image_files.read_image(tmp_path / "closed", Preprocessing(8))


# Work that ends early.


class Stopping:
    """A model that is stopped in its second batch, once; notes how many images it has seen."""

    def __init__(self, error: BaseException) -> None:
        """Takes what it raises."""
        self.error: BaseException | None = error
        self.seen = 0

    def open(self, path: pathlib.Path, **which: Any) -> Predictor:
        """In the place of `predictors.open_any`."""
        del which

        def logits(batch: np.ndarray) -> np.ndarray:
            if self.seen and self.error:
                error, self.error = self.error, None
                raise error
            self.seen += len(batch)
            return 4 * batch.mean(axis=(1, 2))

        described = description.Description("none", "none", ("red", "green", "=blue"), 8, Form())
        return Predictor(logits, described, str(path))


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Stopping:
    """The model of the command, stopped by what a test asks for, else by Ctrl-C."""
    model = Stopping(getattr(request, "param", KeyboardInterrupt()))
    monkeypatch.setattr(predictors, "open_any", model.open)
    return model


@pytest.fixture
def given(run: pathlib.Path, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """The folder of the exports, and that of the images."""
    return run, folder


def stopped(
    run: pathlib.Path, folder: pathlib.Path, *more: str, code: int = 130, model: str = "onnx"
) -> None:
    told(run / f"student.{model}", folder, "--batch_size=5", *more, code=code)


@pytest.mark.parametrize("form", predictions.FORMATS)
@pytest.mark.parametrize(
    ("stopping", "code"),
    [(KeyboardInterrupt(), 130), (command.Terminated(), 143), (OSError(28, "No space left"), 1)],
    indirect=["stopping"],
)
def test_what_was_done_is_kept_and_the_same_command_goes_on(
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
    assert line.endswith(f"; 5 of 12 images are in {partial}; the same command goes on.")
    assert not out.exists()
    stopped(run, folder, *flags, code=0)
    assert f"5 of 12 images are taken from {partial}." in capfd.readouterr().err
    assert stopping.seen == IMAGES + (-7 % 5)  # The last batch is filled up.
    assert list(tmp_path.iterdir()) == [out]
    continued = out.read_bytes()
    stopped(run, folder, *flags, code=0)  # From the start, in place of the one before.
    assert out.read_bytes() == continued
    assert stopping.seen == 2 * IMAGES + (-7 % 5) + (-12 % 5)


def test_images_that_have_changed_are_read_again(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, stopping: Stopping
) -> None:
    copies = tmp_path / "copies"
    shutil.copytree(folder, copies)
    out = tmp_path / "found.csv"
    stopped(run, copies, f"--out={out}")
    Image.fromarray(np.full((9, 9, 3), (255, 0, 0), np.uint8)).save(copies / "00.png")

    stopped(run, copies, f"--out={out}", "--top=5", code=0)

    assert stopping.seen == 5 + 2 * 5  # Eight of them.
    rows = list(csv.reader(out.read_text().splitlines()))
    assert next(row[2] for row in rows[1:] if row[0].endswith("00.png")) == "red"
    assert {row[2] for row in rows[1:]} == {"red", "green", "'=blue"}


def test_a_line_that_was_cut_costs_one_image(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, stopping: Stopping
) -> None:
    out, partial = tmp_path / "found.csv", tmp_path / "found.csv.partial"
    stopped(run, folder, f"--out={out}")
    partial.write_bytes(partial.read_bytes()[:-9])

    stopped(run, folder, f"--out={out}", code=0)

    assert len(out.read_text().splitlines()) == 1 + 3 * IMAGES
    assert stopping.seen == 5 + 2 * 5


@pytest.mark.parametrize(("model", "flags"), [("onnx", ("--top=1",)), ("safetensors", ())])
@pytest.mark.usefixtures("stopping")
def test_what_another_command_has_done_is_neither_used_nor_lost(
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
def test_a_partial_file_of_somebody_else_stays(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, content: str
) -> None:
    partial = tmp_path / "found.csv.partial"
    partial.write_text(content)

    told(run / "student.onnx", folder, f"--out={tmp_path / 'found.csv'}", code=1)

    assert partial.read_text() == content
    assert list(tmp_path.iterdir()) == [partial]


@pytest.mark.parametrize("form", predictions.FORMATS)
def test_standard_output_has_what_was_done(
    run: pathlib.Path,
    folder: pathlib.Path,
    stopping: Stopping,
    form: str,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    stopped(run, folder, f"--format={form}")

    said, told_ = capfdbinary.readouterr()
    if form == "csv":
        assert len(said.splitlines()) == 1 + 3 * 5
    else:
        assert len(json.loads(said)["images"]) == 5
    assert b"stopped; 5 of 12 images were written." in told_


@pytest.mark.parametrize("form", predictions.FORMATS)
def test_a_full_disk_behind_standard_output_is_one_line(
    run: pathlib.Path,
    folder: pathlib.Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:  # noqa: PTH123
        monkeypatch.setattr("sys.stdout", full)
        told(run / "student.onnx", folder, f"--format={form}", code=1)

    (line,) = capfd.readouterr().err.splitlines()
    assert "Standard output cannot be written (No space left on device)" in line


def test_a_home_is_found(
    run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    (tmp_path / "run").symlink_to(run)

    told(pathlib.Path("~/run/student.onnx"), "00.png", "--out=~/found.csv")

    assert (tmp_path / "found.csv").exists()
    assert not (folder / "~").exists()

"""`remem_jax.load`, compared with `remem predict` and with ONNX Runtime."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from scipy import special

import remem_jax
from remem_jax import predict
from remem_jax.checks import SettingError
from remem_jax.export import checking, description, options, runs
from remem_jax.export import students as export
from remem_jax.export.classifier import Prediction
from remem_jax.export.options import Form
from remem_jax.storage import results
from remem_jax.weights import students
from tests.export import drawn

NAME = "mobilenet_v2_035"
ROOT = pathlib.Path(__file__).parents[2]
FORMS = {
    "onnx": Form(input="uint8", batch=5, fold=True),
    "stablehlo": Form("stablehlo"),
    "safetensors": Form("safetensors"),
    "saved-tree": Form("saved-tree"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The images of `drawn` as files, named by their index, in two folders."""
    directory = tmp_path_factory.mktemp("images")
    for i, pixels in enumerate(drawn.images().pixels):
        place = directory / "ab"[i // 6]
        place.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i:02}.png")
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The files of a run that predictions need."""
    directory = tmp_path_factory.mktemp("run")
    student = drawn.student(NAME)
    path = directory / "selected" / "scratch_student.safetensors"
    texts = description.texts(student.described)
    students.save(path, student.variables, metadata=texts)
    row = {"method": "scratch", "student": {"validation": {"top1": 0.5}}}
    facts = {"metric": "top1", "source_size": None}
    config = {"data": {"stored_size": 64}}
    results.write(directory / "results.json", {"methods": [row], "data": facts, "config": config})
    return directory


@pytest.fixture(scope="module")
def model(run: pathlib.Path) -> Any:
    return remem_jax.load(run)


def expected(i: int) -> np.ndarray:
    """Returns the student's probabilities for an image of `drawn`."""
    return special.softmax(drawn.logits(NAME)[i].astype(np.float64))


def assert_probabilities(prediction: Prediction, probabilities: np.ndarray) -> None:
    order = np.argsort(-probabilities)
    assert [name for name, _ in prediction.top] == [drawn.CLASSES[i] for i in order]
    np.testing.assert_allclose(
        [probability for _, probability in prediction.top], probabilities[order], atol=1e-4
    )
    assert (prediction.class_name, prediction.probability) == prediction.top[0]


@pytest.mark.parametrize("form", ["run", *FORMS])
def test_predictions_are_those_of_the_command(
    form: str,
    run: pathlib.Path,
    folder: pathlib.Path,
    tmp_path: pathlib.Path,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    path = run if form == "run" else _export(run, FORMS[form], tmp_path)
    assert predict.main([str(path), str(folder), "--format=json", "--top=3"]) == 0
    content = json.loads(capsysbinary.readouterr().out)["images"]

    found = remem_jax.load(path).predict(folder, top=3)

    assert [str(prediction.path) for prediction in found] == [each["file"] for each in content]
    for prediction, each in zip(found, content, strict=True):
        printed = [(top["class"], top["probability"]) for top in each["top"]]
        assert [name for name, _ in prediction.top] == [name for name, _ in printed]
        np.testing.assert_allclose(
            [value for _, value in prediction.top], [value for _, value in printed], atol=1e-6
        )


def _export(run: pathlib.Path, form: Form, folder: pathlib.Path) -> pathlib.Path:
    """Exports the student as `remem export` does."""
    path = folder / f"student{options.SUFFIXES[form.format]}"
    allowed = checking.limits(form.precision, None, None)
    student, none = runs.open_student(run), np.zeros((0, 0, 0, 3), np.uint8)
    export.export(student, form, path, drawn.images(), allowed=allowed, calibration=none)
    return path


def test_an_export_predicts_what_onnx_runtime_computes(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    path = drawn.write(NAME, Form(), tmp_path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    found = remem_jax.load(path).predict(folder)

    for prediction in found:
        with Image.open(str(prediction.path)) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1
        (logits,) = session.run(None, {"images": pixels[None]})
        assert_probabilities(prediction, special.softmax(logits[0].astype(np.float64)))


# What can be classified.


def test_files_folders_images_and_arrays_are_classified_in_order(
    model: Any, folder: pathlib.Path
) -> None:
    pixels = drawn.images().pixels

    def several() -> Iterator[Any]:
        yield str(folder / "b/07.png")
        yield folder / "a"
        yield Image.fromarray(pixels[3])
        yield pixels[9]
        yield folder / "b" / "07.png"

    found = model.predict(several(), top=len(drawn.CLASSES), batch_size=4)

    indices = [7, *range(6), 3, 9, 7]
    assert len(found) == len(indices)
    for prediction, i in zip(found, indices, strict=True):
        assert_probabilities(prediction, expected(i))
    files = [folder / "b/07.png", *(folder / f"a/{i:02}.png" for i in range(6))]
    assert [prediction.path for prediction in found] == [*files, None, None, folder / "b/07.png"]


@pytest.mark.parametrize("kind", ["path", "text", "image", "array", "arrays"])
def test_a_single_image_needs_no_list(model: Any, folder: pathlib.Path, kind: str) -> None:
    pixels, path = drawn.images().pixels, folder / "a/02.png"
    images = {
        "path": path,
        "text": str(path),
        "image": Image.fromarray(pixels[2]),
        "array": pixels[2],
        "arrays": pixels[2:3],
    }

    (found,) = model.predict(images[kind], top=len(drawn.CLASSES))

    assert_probabilities(found, expected(2))
    assert found.path == (path if kind in ("path", "text") else None)


def test_images_of_pillow_are_read_like_their_files(
    model: Any, tmp_path: pathlib.Path, rng: np.random.Generator
) -> None:
    pixels = rng.integers(0, 256, (40, 60, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    deep = (rng.integers(0, 2**16, (40, 60))).astype(np.uint16)
    images = {
        "turned.jpg": (Image.fromarray(pixels), {"exif": turned}),
        "alpha.png": (Image.fromarray(np.dstack([pixels, pixels[..., 0]])), {}),
        "palette.png": (Image.fromarray(pixels).quantize(8), {}),
        "deep.png": (Image.fromarray(deep), {}),
        "turned.tiff": (Image.fromarray(pixels), {"exif": turned}),
        "grey.webp": (Image.fromarray(pixels[..., 0]), {"lossless": True}),
        "cmyk.jpg": (Image.fromarray(pixels).convert("CMYK"), {}),
    }
    for name, (image, arguments) in images.items():
        image.save(tmp_path / name, **arguments)
    paths = [tmp_path / name for name in images]
    opened = [Image.open(path) for path in paths]

    from_files, from_pillow = model.predict(paths), model.predict(opened)

    for image in opened:
        image.close()
    for file, image in zip(from_files, from_pillow, strict=True):
        assert not file.error
        assert image.top == file.top


def test_images_of_any_size_are_resized(model: Any, rng: np.random.Generator) -> None:
    coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
    small, large = (np.kron(coarse, np.ones((n, n, 1), np.uint8)) for n in (4, 16))

    found = model.predict([small, large], top=len(drawn.CLASSES))

    resized = np.asarray(
        Image.fromarray(large).resize((drawn.SIDE, drawn.SIDE), Image.Resampling.BILINEAR)
    )
    logits = drawn.predictor(NAME).predict(np.stack([small, resized]))
    for prediction, row in zip(found, logits, strict=True):
        probabilities = special.softmax(row.astype(np.float64))
        for name, probability in prediction.top:  # The resizers differ by up to a grey level.
            assert probability == pytest.approx(probabilities[drawn.CLASSES.index(name)], abs=0.02)


@pytest.mark.parametrize("batch_size", [0, 1, 5, 100])
def test_batches_change_nothing(model: Any, batch_size: int) -> None:
    found = model.predict(drawn.images().pixels, top=len(drawn.CLASSES), batch_size=batch_size)

    for i, prediction in enumerate(found):
        assert_probabilities(prediction, expected(i))


def test_no_images_have_no_predictions(model: Any) -> None:
    assert model.predict([]) == []


# Errors.


def test_a_file_that_cannot_be_read_is_returned_with_the_reason(
    model: Any, folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    missing = tmp_path / "missing.jpg"

    bad, good, gone = model.predict([text, folder / "a/00.png", missing])

    assert bad == Prediction(text, None, None, (), "cannot be decoded: not an image.")
    assert gone == Prediction(missing, None, None, (), "cannot be read: No such file or directory.")
    assert good.class_name in drawn.CLASSES
    assert good.error == ""


def test_it_is_an_error_if_no_image_can_be_read(model: Any, tmp_path: pathlib.Path) -> None:
    message = r"None of the images can be read.*missing\.jpg cannot be read: No such file"
    with pytest.raises(SettingError, match=message):
        model.predict(tmp_path / "missing.jpg")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"uint8 of \(height, width, 3\), in RGB; got float32"),
        (np.zeros((4, 4), np.uint8), r"got uint8 of \(4, 4\)"),
        (np.zeros((4, 0, 3), np.uint8), r"got uint8 of \(4, 0, 3\)"),
        ([np.zeros((3, 4, 4), np.uint8)], r"got uint8 of \(3, 4, 4\)"),
        (iter([7]), "must be paths, Pillow's images or uint8 arrays; got int"),
    ],
)
def test_something_else_than_an_image_is_refused(model: Any, images: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        model.predict(images)


def test_a_folder_without_images_is_refused(model: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=f"{tmp_path} contains no images"):
        model.predict(tmp_path)


@pytest.mark.parametrize("option", ["top", "batch_size"])
def test_numbers_out_of_range_are_refused(model: Any, option: str) -> None:
    with pytest.raises(SettingError, match=f"{option} must be at least"):
        model.predict(drawn.images().pixels, **{option: -1})


@pytest.mark.parametrize("name", ["nowhere", "nowhere.onnx"])
def test_a_missing_model_is_named(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(SettingError, match=f"There is no run and no export {tmp_path / name}"):
        remem_jax.load(tmp_path / name)


def test_a_method_that_the_run_lacks_is_refused(run: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=r"--method of .* must be one of scratch; got 'remem'"):
        remem_jax.load(run, method="remem")


def test_every_format_of_students_is_tested() -> None:
    assert set(FORMS) == set(options.FORMATS)


def test_the_package_is_imported_without_jax() -> None:
    code = "import sys, remem_jax; print({'jax', 'numpy'} & {*sys.modules})"

    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert outcome.stdout == "set()\n"

"""What docs/export.md says of exports and predictions can be done."""

import pathlib
import re
import shlex
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from scipy import special

from remem_jax import predict
from remem_jax.export import __main__ as export
from remem_jax.export import (
    checking,
    description,
    formats,
    inference,
    options,
    predictors,
)
from remem_jax.export.options import Form
from tests.export import drawn, pictures

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "export.md").read_text()
COMMANDS = {"export": export._parser, "predict": predict._parser}
SMALLEST = "mobilenet_v2_035"


@pytest.mark.parametrize("module", COMMANDS)
def test_the_options_of_the_commands_are_there(module: str) -> None:
    found = re.findall(rf"^    .*bin/remem {module} (.*?)(?: >.*)?$", PAGE, re.MULTILINE)

    assert len(found) >= 3
    for line in found:
        COMMANDS[module]().parse_args(shlex.split(line))


def test_every_format_is_on_the_page() -> None:
    for name in (*options.FORMATS, *options.TEACHER_FORMATS):
        assert f"`{name}`" in PAGE


def test_the_limits_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| `(float32|float16|int8)` \| (\S+).*? \| ([\d.]+) % \|$", PAGE, re.M)

    assert len(rows) == len(checking.LIMITS)
    for precision, difference, disagreement in rows:
        allowed = checking.LIMITS[precision]
        assert difference == "no" or float(difference) == allowed[0]
        assert float(disagreement) / 100 == pytest.approx(allowed[1])


def program() -> str:
    """What the page does without this package."""
    return re.findall(r"^```python\n(import json.*?)^```", PAGE, re.DOTALL | re.MULTILINE)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where the page's export lies, of a run that kept its images as squares of 48 pixels."""
    place = tmp_path_factory.mktemp("page")
    path = place / "student.onnx"
    student = drawn.student(SMALLEST)
    described = student.described._replace(form=Form(), stored_size=48)
    formats.write(student, described, path, drawn.images().pixels)
    return place


def test_the_program_of_the_page_says_the_students_class(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    model = predictors.open_any(pathlib.Path("student.onnx"))
    found = set()

    for pixels in drawn.images().pixels:
        Image.fromarray(pixels).save("photo.jpg", "PNG")  # A program looks at what is in it.
        exec(program(), {})
        said = capsys.readouterr().out.strip()
        paths = [pathlib.Path("photo.jpg")]
        ((best, _),) = inference.predict(model, paths, top=1, batch_size=1).top["photo.jpg"]
        assert said == best
        found.add(said)

    assert len(found) > 1


@pytest.fixture(
    scope="module", params=[{"stored_size": 48}, {"crop": 0.875}], ids=["stored", "crop"]
)
def linear(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The same of a model whose logits are sums of pixels: as smooth as a trained one, or more."""
    place = tmp_path_factory.mktemp("linear")
    path = place / "student.onnx"
    weights = np.random.default_rng(0).normal(0, 0.1, (3 * drawn.SIDE**2, len(drawn.CLASSES)))
    described = drawn.student(SMALLEST).described._replace(form=Form(), **request.param)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    shapes = {"images": ["batch", drawn.SIDE, drawn.SIDE, 3], "logits": ["batch", weights.shape[1]]}
    images, logits = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    kept = [numpy_helper.from_array(weights.astype(np.float32), "weights")]
    made = helper.make_model(
        helper.make_graph(nodes, "linear", [images], [logits], kept),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    for name, text in description.texts(described).items():
        made.metadata_props.add(key=name, value=text)
    path.write_bytes(made.SerializeToString())
    return place


@pytest.mark.parametrize("mode", pictures.MODES)
def test_the_program_of_the_page_agrees_with_predict(
    linear: pathlib.Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.chdir(linear)
    pathlib.Path("photo.jpg").write_bytes(pictures.encoded(mode))
    namespace: dict[str, Any] = {}

    exec(program(), namespace)
    model = predictors.open_any(pathlib.Path("student.onnx"))
    found = inference.predict(model, [pathlib.Path("photo.jpg")], top=9, batch_size=1)

    assert not found.failed
    shares = special.softmax(namespace["logits"][0].astype(np.float64))
    for name, share in found.top["photo.jpg"]:
        assert share == pytest.approx(shares[drawn.CLASSES.index(name)], abs=0.02)
    assert np.std(shares) > 0.02  # Or anything would pass.
    seen = (namespace["images"][0] + 1) * 127.5
    steps = model.described.preprocessing
    assert np.abs(seen - steps(pictures.encoded(mode))).max() <= 2.01  # A level for each resize.

"""What docs/export.md says of exports and predictions can be done."""

import pathlib
import re
import shlex

import pytest
from PIL import Image

from remem_jax import predict
from remem_jax.export import __main__ as export
from remem_jax.export import checking, description, teachers
from remem_jax.export.description import Form
from tests.export import drawn

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "export.md").read_text()
COMMANDS = {"export": export._parser, "predict": predict._parser}
SMALLEST = "mobilenet_v2_035"


@pytest.mark.parametrize("module", COMMANDS)
def test_the_options_of_the_commands_are_there(module: str) -> None:
    found = re.findall(rf"^    .*-m remem_jax\.{module} (.*?)(?: >.*)?$", PAGE, re.MULTILINE)

    assert len(found) >= 3
    for line in found:
        COMMANDS[module]().parse_args(shlex.split(line))


def test_every_format_is_on_the_page() -> None:
    for name in (*description.FORMATS, *teachers.FORMATS):
        assert f"`{name}`" in PAGE


def test_the_limits_are_those_of_the_page() -> None:
    rows = re.findall(r"^\| `(float32|float16|int8)` \| (\S+).*? \| ([\d.]+) % \|$", PAGE, re.M)

    assert len(rows) == len(checking.LIMITS)
    for precision, difference, disagreement in rows:
        allowed = checking.LIMITS[precision]
        assert difference == "no" or float(difference) == allowed[0]
        assert float(disagreement) / 100 == pytest.approx(allowed[1])


def test_the_program_of_the_page_says_the_students_class(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "look" / "export" / "remem_student.onnx"
    path.parent.mkdir(parents=True)
    path.write_bytes(drawn.onnx_bytes(SMALLEST, Form()))
    found = set()

    for pixels, logits in zip(drawn.images().pixels, drawn.logits(SMALLEST), strict=True):
        Image.fromarray(pixels).save("photo.jpg", "PNG")  # A program looks at what is in it.
        exec(re.findall(r"^```python\n(import numpy.*?)^```", PAGE, re.DOTALL | re.M)[0], {})
        said = capsys.readouterr().out.strip()
        assert said == drawn.CLASSES[logits.argmax()]
        found.add(said)

    assert len(found) > 1

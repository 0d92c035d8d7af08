"""Exports of a ViT in every format and precision, compared with the student in JAX."""

import collections
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import onnx
import pytest

from remem_jax import models
from remem_jax.export import checking, formats, options, predictors, runs
from remem_jax.export.options import Form
from tests import tiny_run
from tests.export import drawn

NAME = tiny_run.VIT_NAME


@pytest.fixture(scope="module", autouse=True)
def student() -> Iterator[runs.Student]:
    """A student with the GELU of AugReg, pooled by its mean, which is not the default."""
    architecture = {"pool": "gap", "gelu": "tanh"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.STUDENTS, NAME, tiny_run.VIT_STUDENT)
        default = drawn.student(NAME)
        described = default.described._replace(architecture=architecture)
        model = runs.make_model(described)
        variables = {"params": dict(default.variables["params"])}
        del variables["params"]["cls"]
        positions = variables["params"]["Transformer"]["posembed_input"]
        variables["params"]["Transformer"] = {
            **variables["params"]["Transformer"],
            "posembed_input": jax.tree.map(lambda leaf: leaf[:, 1:], positions),
        }
        yield runs.Student(model, variables, described, "drawn")


@pytest.fixture(scope="module")
def expected(student: runs.Student) -> np.ndarray:
    return predictors.of_student(student).predict(drawn.images().pixels)


def write(student: runs.Student, form: Form, folder: pathlib.Path) -> pathlib.Path:
    path = folder / f"student{options.SUFFIXES[form.format]}"
    described = student.described._replace(form=form)
    formats.write(student, described, path, drawn.images().pixels)
    return path


@pytest.mark.parametrize(
    ("form", "difference"),
    [
        (Form("onnx"), 1e-5),
        (Form("onnx", "uint8", 5), 1e-5),
        (Form("onnx", precision="float16"), 1e-2),
        (Form("stablehlo"), 1e-5),
        (Form("stablehlo", precision="float16"), 1e-2),
        (Form("safetensors"), 0.0),
        (Form("safetensors", precision="float16"), 1e-2),
        (Form("saved-tree"), 0.0),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_an_export_has_the_logits_of_the_student(
    form: Form,
    difference: float,
    student: runs.Student,
    expected: np.ndarray,
    mixed_dtypes: None,
    tmp_path: pathlib.Path,
) -> None:
    texts = {"architecture": '{"gelu": "tanh", "pool": "gap"}'}
    path = write(student, form, tmp_path)

    described = student.described._replace(form=form)
    export = predictors.open_export(path, form.format, checking.description.texts(described))

    assert export.described.architecture == {"gelu": "tanh", "pool": "gap"}
    assert texts["architecture"] == checking.description.texts(export.described)["architecture"]
    logits = export.predict(drawn.images().pixels)
    limit = difference * max(1, float(np.abs(expected).max()))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=limit)


def test_half_precision_halves_the_file(
    student: runs.Student, mixed_dtypes: None, tmp_path: pathlib.Path
) -> None:
    sizes = {}
    for form in ("onnx", "stablehlo"):
        for precision in ("float32", "float16"):
            path = write(student, Form(form, precision=precision), tmp_path)
            sizes[form, precision] = path.stat().st_size
    for form in ("onnx", "stablehlo"):
        assert sizes[form, "float16"] < 0.6 * sizes[form, "float32"]


def test_int8_quantises_the_products_with_weights(
    student: runs.Student, expected: np.ndarray, tmp_path: pathlib.Path
) -> None:
    path = write(student, Form("onnx", precision="int8"), tmp_path)

    logits = predictors.open_export(path, "onnx").predict(drawn.images().pixels)

    graph = onnx.load(path).graph
    stored = [onnx.numpy_helper.to_array(array) for array in graph.initializer]
    large = [array.dtype for array in stored if array.ndim > 1 and array.size > 4000]
    assert collections.Counter(large)[np.dtype(np.int8)] >= 12  # Of two blocks and the embedding.
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.99

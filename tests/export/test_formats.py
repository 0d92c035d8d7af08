"""Every format reproduces the student's logits; ONNX files run in plain ONNX Runtime."""

import pathlib

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from remem_jax.checks import SettingError
from remem_jax.export import description, destinations, options, predictors
from remem_jax.export.options import Form
from remem_jax.storage import results
from tests.export import drawn

NAMES = ("resnet18", "regnety_004", "mobilenet_v2_035", "efficientnet_v2_b0")
SMALLEST = "mobilenet_v2_035"
# tests/models/test_every_student.py exports every student without folding.
FORMS = pytest.mark.parametrize(
    ("name", "fold"), [*((name, True) for name in NAMES), (SMALLEST, False)]
)


def run(form: Form, images: np.ndarray, name: str = SMALLEST) -> np.ndarray:
    """Computes logits with ONNX Runtime, without code of this project."""
    session = onnxruntime.InferenceSession(
        drawn.onnx_bytes(name, form), providers=["CPUExecutionProvider"]
    )
    return session.run(["logits"], {"images": images})[0]


@FORMS
def test_onnx_runtime_gives_the_students_logits_for_any_batch(name: str, fold: bool) -> None:
    expected = drawn.logits(name)

    for batch in (1, 3):
        logits = run(Form(fold=fold), drawn.floats()[:batch], name)
        np.testing.assert_allclose(logits, expected[:batch], rtol=0, atol=1e-4)
    assert np.std(expected, axis=0).max() > 0.05  # Otherwise any output would pass.


@FORMS
def test_every_layer_is_one_standard_onnx_node(name: str, fold: bool) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(drawn.student(name).variables["params"])
    names = [path[-1].key for path, array in leaves if array.ndim in (1, 4)]

    model = onnx.load_from_string(drawn.onnx_bytes(name, Form(fold=fold)))

    onnx.checker.check_model(model, full_check=True)
    kinds = [node.op_type for node in model.graph.node]
    assert {item.domain for item in model.opset_import} == {""}
    assert kinds.count("Conv") == names.count("kernel")
    assert kinds.count("BatchNormalization") == (0 if fold else names.count("scale"))
    assert kinds.count("Transpose") == 1  # For the images.
    # After folding, every convolution includes its bias.
    inputs = [len(node.input) for node in model.graph.node if node.op_type == "Conv"]
    assert not fold or set(inputs) == {3}


def test_a_graph_with_uint8_input_scales_the_images() -> None:
    logits = run(Form(input="uint8"), drawn.images().pixels)
    np.testing.assert_allclose(logits, drawn.logits(SMALLEST), rtol=0, atol=1e-4)


def test_a_fixed_batch_size_is_stored_in_the_graph() -> None:
    form = Form(batch=5, fold=True)

    logits = run(form, drawn.floats()[:5])

    np.testing.assert_allclose(logits, drawn.logits(SMALLEST)[:5], rtol=0, atol=1e-4)
    model = onnx.load_from_string(drawn.onnx_bytes(SMALLEST, form))
    assert [item.dim_value for item in model.graph.input[0].type.tensor_type.shape.dim] == [
        5,
        32,
        32,
        3,
    ]


def test_float16_halves_the_file_and_rounds_logits() -> None:
    form = Form(fold=True, precision="float16")

    logits = run(form, drawn.floats())

    # float16 rounds with a relative error of 2**-11 in each of about 50 layers.
    scale = np.abs(drawn.logits(SMALLEST)).max()
    np.testing.assert_allclose(logits, drawn.logits(SMALLEST), rtol=0, atol=50 * 2**-11 * scale)
    assert len(drawn.onnx_bytes(SMALLEST, form)) < 0.55 * len(drawn.onnx_bytes(SMALLEST, Form()))


def test_int8_stores_integers_and_stays_close() -> None:
    form = Form(fold=True, precision="int8")

    logits = run(form, drawn.floats())

    model = onnx.load_from_string(drawn.onnx_bytes(SMALLEST, form))
    kernels = [item for item in model.graph.initializer if len(item.dims) == 4]
    assert {item.data_type for item in kernels} == {onnx.TensorProto.INT8}
    correlation = np.corrcoef(logits.ravel(), drawn.logits(SMALLEST).ravel())[0, 1]
    assert correlation > 0.9  # For a trained network it is at least 0.99.


@pytest.mark.parametrize(
    "form",
    [
        Form("stablehlo", input="uint8", fold=True),
        Form("safetensors", precision="float16"),
        Form("saved-tree", fold=True),
    ],
)
def test_every_other_format_can_be_read_again(form: Form, tmp_path: pathlib.Path) -> None:
    path = drawn.write(SMALLEST, form, tmp_path)
    described = drawn.student(SMALLEST).described._replace(form=form)

    record = {"metadata": description.texts(described), "check": {}}
    results.write(destinations.record_path(path), record)

    read = predictors.open_any(path)

    logits, expected = read.predict(drawn.images().pixels), drawn.logits(SMALLEST)
    near = 1e-4 if form.precision == "float32" else 50 * 2**-11 * np.abs(expected).max()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=near)
    assert read.described == described


def test_metadata_can_be_read_again(tmp_path: pathlib.Path) -> None:
    form = Form(input="uint8", batch=5, fold=True)
    path = drawn.write(SMALLEST, form, tmp_path)

    read = predictors.open_any(path)

    assert read.described == drawn.student(SMALLEST).described._replace(form=form)
    assert read.classes == drawn.CLASSES
    logits = read.predict(drawn.images().pixels)  # 12 images in batches of 5.
    np.testing.assert_allclose(logits, drawn.logits(SMALLEST), rtol=0, atol=1e-4)
    with pytest.raises(SettingError, match="takes uint8 images"):
        read.predict(drawn.floats())
    with pytest.raises(SettingError, match="32 x 32 pixels"):
        read.predict(drawn.images().pixels[:, :16])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form("safetensors", input="uint8"), "holds parameters"),
        (Form("saved-tree", batch=3), "holds parameters"),
        (Form("safetensors", fold=True), "leave out --fold"),
        (Form("stablehlo", precision="int8"), "needs --format=onnx"),
        (Form("tflite"), "--format must be one of"),
        (Form(batch=-1), "--batch must be at least 0"),
    ],
)
def test_impossible_forms_are_refused(form: Form, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        options.check(form)

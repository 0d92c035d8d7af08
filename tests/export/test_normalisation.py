"""Exports of a student with ImageNet's mean and deviation, compared with timm's network."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
import onnx
import pytest
import safetensors.torch

from remem_jax import models
from remem_jax.export import description, destinations, formats, options, predictors, runs
from remem_jax.export.options import Form
from remem_jax.models.normalisation import IDENTITY, IMAGENET
from remem_jax.storage import results
from tests import tiny_run
from tests.export import drawn
from tests.oracles import peers

pytestmark = pytest.mark.usefixtures("resnet4")


@functools.cache
def student() -> runs.Student:
    model = models.make(tiny_run.NAME, classes=len(drawn.CLASSES), normalisation=IMAGENET)
    rng = np.random.default_rng(0)
    drawn_variables = jax.tree.map(
        lambda leaf: np.asarray(leaf + rng.uniform(0.01, 0.1, leaf.shape), np.float32),
        models.init(model, jax.random.key(0), drawn.SIDE),
    )
    described = description.Description(
        tiny_run.NAME,
        "imagenet",
        drawn.CLASSES,
        drawn.SIDE,
        Form("safetensors"),
        identity="drawn",
        normalisation=IMAGENET,
    )
    return runs.Student(model, drawn_variables, described, "drawn")


def write(form: Form, folder: pathlib.Path) -> pathlib.Path:
    described = student().described._replace(form=form)
    path = folder / f"export{options.SUFFIXES[form.format]}"
    formats.write(student(), described, path, drawn.images().pixels)
    metadata = {"metadata": description.texts(described), "check": {}}
    results.write(destinations.record_path(path), metadata)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, resnet4: str) -> np.ndarray:
    """Logits of timm's network, for images that are normalised outside of it."""
    path = write(Form("safetensors"), tmp_path_factory.mktemp("weights"))
    peer = peers.resnet4(len(drawn.CLASSES)).eval()
    peer.load_state_dict(safetensors.torch.load_file(path), strict=True)
    pixels = drawn.images().pixels.astype(np.float32) / 255
    images = ((pixels - IMAGENET.mean) / IMAGENET.std).transpose(0, 3, 1, 2)
    with peers.torch().no_grad():
        return peer(peers.torch().tensor(images, dtype=peers.torch().float32)).numpy()


@pytest.mark.parametrize(
    ("form", "near"),
    [
        (Form("onnx"), 1e-4),
        (Form("onnx", input="uint8", fold=True), 1e-4),
        (Form("onnx", fold=True, precision="float16"), 0.02),
        (Form("onnx", input="uint8", fold=True, precision="int8"), 0.1),
        (Form("stablehlo", fold=True), 1e-4),
        (Form("safetensors"), 1e-4),
        (Form("saved-tree", fold=True), 1e-4),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, Form) else "",
)
def test_exports_give_the_logits_of_timm(
    form: Form, near: float, expected: np.ndarray, tmp_path: pathlib.Path
) -> None:
    export = predictors.open_any(write(form, tmp_path))

    logits = export.predict(drawn.images().pixels)

    np.testing.assert_allclose(logits, expected, rtol=0, atol=near * np.abs(expected).max())
    assert export.described.normalisation == IMAGENET
    without = student()._replace(
        model=models.make(tiny_run.NAME, classes=len(drawn.CLASSES)),
        described=student().described._replace(normalisation=IDENTITY),
    )
    others = predictors.of_student(without).predict(drawn.images().pixels)
    assert np.abs(others - expected).max() > 2 * near * np.abs(expected).max()


def test_the_graph_normalises_by_one_product_and_one_sum(tmp_path: pathlib.Path) -> None:
    model = onnx.load(write(Form("onnx", fold=True), tmp_path))

    kinds = [node.op_type for node in model.graph.node]
    assert kinds[: kinds.index("Conv")] == ["Transpose", "Mul", "Add"]
    metadata: dict[str, Any] = {item.key: item.value for item in model.metadata_props}
    assert metadata["mean"] == "[0.485, 0.456, 0.406]"
    assert metadata["std"] == "[0.229, 0.224, 0.225]"
    assert metadata["image_range"] == "-1 to 1"

"""AugReg files: a real one gives its reference outputs, and errors name what is broken."""

import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from scipy import ndimage

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.data.images import augment
from remem_jax.data.images.preprocessing import Preprocessing
from remem_jax.models import vit
from remem_jax.weights import augreg, catalog, matching, names

TI16 = (
    "weights/Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
    "--imagenet2012-steps_20k-lr_0.03-res_224.npz"
)
DEIT = "weights/deit_tiny_patch16_224-ln8bit-pm1.npz"


def reference_images() -> np.ndarray:
    """The four images of the reference outputs, which a formula defines."""
    n, y, x, c = np.meshgrid(*(np.arange(k) for k in (4, 224, 224, 3)), indexing="ij")
    waves = np.sin(2 * np.pi * ((n + 1) * x / 224 + c / 3))
    return (waves * np.cos(2 * np.pi * ((c + 1) * y / 224 + n / 4))).astype(np.float32)


@pytest.mark.parametrize(
    ("file", "gelu", "name"),
    [(TI16, "tanh", "augreg_ti16_res224"), (DEIT, "erf", "deit_tiny_pm1")],
)
def test_real_checkpoints_give_their_reference_outputs(
    shared: pathlib.Path, file: str, gelu: str, name: str
) -> None:
    expected = np.load(shared / "weights/reference_outputs.npz")
    model: Any = models.make("vit", variant="Ti/16", classes=1000, gelu=gelu)
    variables = augreg.load(shared / file, model)
    images = reference_images()

    logits = jax.jit(model.apply)(variables, images)
    pre_logits = model.apply(variables, images, method="pre_logits")

    np.testing.assert_allclose(logits, expected[f"{name}/{gelu}/logits"], atol=1e-4)
    np.testing.assert_allclose(pre_logits, expected[f"{name}/{gelu}/pre_logits"], atol=1e-4)


def test_the_bundled_teacher_is_the_original_without_its_head_rounded_to_float16(
    shared: pathlib.Path,
) -> None:
    with np.load(shared / TI16) as file:
        original = {name: file[name] for name in file.files if not name.startswith("head/")}

    with np.load(catalog.locate("bundled:Ti/16")) as file:
        stored = {name: file[name] for name in file.files}
    read = augreg.read(catalog.locate("bundled:Ti/16"))

    assert stored.keys() == read.arrays.keys() == original.keys()
    for name, array in original.items():
        assert stored[name].dtype == np.float16
        assert read.arrays[name].dtype == np.float32
        # Half of the last of 11 bits, or half of the smallest positive number of float16.
        np.testing.assert_allclose(read.arrays[name], array, rtol=2**-11, atol=2**-25)


def test_the_bundled_teacher_gives_the_reference_outputs_but_for_its_rounding(
    shared: pathlib.Path,
) -> None:
    name = "augreg_ti16_res224/tanh/pre_logits"
    expected = np.load(shared / "weights/reference_outputs.npz")[name]
    model, variables = augreg.make(catalog.locate("bundled:Ti/16"), classes=10)

    pre_logits = model.apply(variables, reference_images(), method="pre_logits")

    assert model.size == vit.VARIANTS["Ti/16"]
    np.testing.assert_allclose(np.asarray(pre_logits), expected, atol=0.05)  # They reach 17.


def test_another_value_range_would_be_detected(shared: pathlib.Path) -> None:
    # Pixels of the reference images, as 8 bits, through the pipeline's own transform.
    expected = np.load(shared / "weights/reference_outputs.npz")["augreg_ti16_res224/tanh/logits"]
    pixels = np.round((reference_images() + 1) * 127.5).astype(np.uint8)
    model: Any = models.make("vit", variant="Ti/16", classes=1000)
    variables = augreg.load(shared / TI16, model)
    transform = augment.make_evaluation_transform(Preprocessing(224))

    images = transform(jax.random.key(0), jax.numpy.asarray(pixels))
    error = np.abs(model.apply(variables, images) - expected).max()
    error_of_unit_range = np.abs(model.apply(variables, (images + 1) / 2) - expected).max()

    assert error < 0.1  # Rounding to 8 bits moves a pixel by up to 0.004.
    assert error_of_unit_range > 1.0


SIZE = vit.Size(patch=4, features=12, depth=2, heads=2)


@pytest.fixture
def model() -> vit.VisionTransformer:
    return vit.VisionTransformer(SIZE, classes=5)


@pytest.fixture
def arrays(model: vit.VisionTransformer, rng: np.random.Generator) -> dict[str, Any]:
    """Contents of a file that fits the model at 16 pixels."""
    shapes = augreg.names_and_shapes(model, 16)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def path(tmp_path: pathlib.Path, arrays: dict[str, Any]) -> pathlib.Path:
    np.savez(tmp_path / "vit.npz", **arrays)
    return tmp_path / "vit.npz"


def test_every_array_of_the_file_is_loaded_under_its_name(
    model: vit.VisionTransformer, arrays: dict[str, Any], path: pathlib.Path
) -> None:
    loaded = traverse_util.flatten_dict(dict(augreg.load(path, model)["params"]), sep="/")

    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_loading_undoes_saving(
    model: vit.VisionTransformer, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    params = augreg.load(path, model)["params"]

    augreg.save(tmp_path / "again.npz", params)

    jax.tree.map(
        np.testing.assert_array_equal, augreg.load(tmp_path / "again.npz", model)["params"], params
    )


def test_a_head_for_another_task_starts_from_zeros(path: pathlib.Path) -> None:
    params = augreg.load(path, vit.VisionTransformer(SIZE, classes=7), reset_head=True)["params"]

    assert params["head"]["kernel"].shape == (12, 7)
    np.testing.assert_array_equal(params["head"]["kernel"], 0.0)


def test_positions_are_resized_as_vit_jax_does(
    model: vit.VisionTransformer, arrays: dict[str, Any], path: pathlib.Path
) -> None:
    loaded = augreg.load(path, model, image_size=24)["params"]["Transformer"]["posembed_input"]

    grid = arrays[names.POSITION][0, 1:].reshape(4, 4, 12)
    expected = ndimage.zoom(grid, (6 / 4, 6 / 4, 1), order=1).reshape(36, 12)
    np.testing.assert_allclose(loaded["pos_embedding"][0, 1:], expected)
    np.testing.assert_array_equal(loaded["pos_embedding"][0, 0], arrays[names.POSITION][0, 0])


def test_pre_logits_are_dropped(
    model: vit.VisionTransformer, arrays: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    extra = {"pre_logits/kernel": np.zeros((12, 12)), "pre_logits/bias": np.zeros(12)}
    np.savez(tmp_path / "i21k.npz", **arrays, **extra)

    assert "pre_logits" not in augreg.load(tmp_path / "i21k.npz", model)["params"]


def test_the_report_lists_each_array(model: vit.VisionTransformer, arrays: dict[str, Any]) -> None:
    shapes = augreg.names_and_shapes(model, 24)
    arrays |= {"pre_logits/kernel": np.zeros((12, 12))}

    _, report = matching.fit(arrays, shapes, reset_head=True, source="file")

    assert report.resized == (names.POSITION,)
    assert report.reset == matching.HEAD
    assert report.ignored == ("pre_logits/kernel",)
    assert set(report.used) == set(shapes) - {names.POSITION, *matching.HEAD}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"cls": None}, r"missing: cls"),
        ({"extra/kernel": np.zeros(3)}, r"unexpected: extra/kernel"),
        (
            {"embedding/bias": np.zeros(13)},
            r"mis-shaped: embedding/bias \(13,\) instead of \(12,\)",
        ),
        ({"head/kernel": np.zeros((12, 9))}, r"mis-shaped: head/kernel \(12, 9\)"),
    ],
)
def test_an_array_that_does_not_fit_is_named(
    model: vit.VisionTransformer,
    arrays: dict[str, Any],
    tmp_path: pathlib.Path,
    change: dict[str, Any],
    complaint: str,
) -> None:
    broken = {n: a for n, a in {**arrays, **change}.items() if a is not None}
    np.savez(tmp_path / "broken.npz", **broken)

    with pytest.raises(SettingError, match=complaint):
        augreg.load(tmp_path / "broken.npz", model)


def test_a_checkpoint_of_another_size_names_the_setting(path: pathlib.Path) -> None:
    deeper = vit.VisionTransformer(SIZE._replace(depth=3), classes=5)
    with pytest.raises(SettingError, match=r"encoderblock_2.*config\.teacher\.variant"):
        augreg.load(path, deeper)


def test_a_file_that_is_no_npz_is_refused(
    model: vit.VisionTransformer, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "vit.npz").write_bytes(b"<html>404</html>")
    with pytest.raises(SettingError, match=r"is not a whole \.npz checkpoint"):
        augreg.load(tmp_path / "vit.npz", model)


def test_a_missing_file_is_named(model: vit.VisionTransformer) -> None:
    with pytest.raises(SettingError, match=r"no checkpoint missing\.npz"):
        augreg.load("missing.npz", model)


def test_a_student_takes_no_augreg_file(path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match="not a ResNet"):
        augreg.load(path, models.make("resnet18", classes=2))

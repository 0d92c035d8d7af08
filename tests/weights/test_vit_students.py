"""Checkpoints of ViTs as the initial weights of students, and students' files."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models import vit
from remem_jax.models.normalisation import IDENTITY, IMAGENET
from remem_jax.weights import (
    augreg,
    initial_students,
    matching,
    names,
    students,
    timm,
    timm_names,
    vit_students,
)
from tests import tiny_run
from tests.models.test_vit_students import drawn, nchw
from tests.oracles import peers
from tests.weights.test_augreg import reference_images

CLASSES, SIDE = 3, 40
TI_16 = "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-"


@pytest.fixture(autouse=True)
def student() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.STUDENTS, tiny_run.VIT_NAME, tiny_run.VIT_STUDENT)
        yield tiny_run.VIT_NAME


def teacher(rng: np.random.Generator, **options: Any) -> tuple[Any, Any]:
    """Returns a ViT of the student's size, and parameters of it."""
    model = vit.make(variant=tiny_run.TEACHER, classes=CLASSES, **options)
    return model, drawn(model, rng)["params"]


def saved(path: pathlib.Path, params: Any, form: str) -> pathlib.Path:
    """Writes a checkpoint in a form, under the suffix of that form."""
    if form == "timm":
        timm.save(
            path.with_suffix(".safetensors"), timm_names.to_timm(augreg.flatten(params), grid=5)
        )
        return path.with_suffix(".safetensors")
    augreg.save(path.with_suffix(".npz"), params, form=form)
    return path.with_suffix(".npz")


def read(path: pathlib.Path, image_size: int = SIDE, name: str = tiny_run.VIT_NAME) -> Any:
    return initial_students.read(
        str(path), student=name, stem="imagenet", image_size=image_size, mean=(), std=()
    )


@pytest.mark.parametrize(
    ("form", "options", "gelu"),
    [
        ("vit_jax", {"pool": "cls"}, "tanh"),
        ("vit_jax", {"pool": "gap"}, "tanh"),
        ("big_vision", {"pool": "cls"}, "tanh"),
        ("big_vision", {"pool": "map"}, "tanh"),
        ("big_vision", {"pool": "gap", "positions": "sincos2d"}, "tanh"),
        ("timm", {"pool": "cls", "gelu": "erf"}, "erf"),
        ("timm", {"pool": "gap", "gelu": "erf"}, "erf"),
    ],
)
def test_a_student_computes_the_logits_of_its_checkpoint(
    form: str,
    options: dict[str, Any],
    gelu: str,
    rng: np.random.Generator,
    tmp_path: pathlib.Path,
) -> None:
    original, params = teacher(rng, **options)
    images = jnp.asarray(rng.uniform(-1, 1, (2, SIDE, SIDE, 3)), jnp.float32)

    initial = read(saved(tmp_path / "x", params, form))

    assert initial.architecture == {"pool": options["pool"], "gelu": gelu}
    assert initial.normalisation == IDENTITY
    assert "head" not in initial.variables["params"]
    model = models.make(tiny_run.VIT_NAME, classes=CLASSES, **initial.architecture)
    variables = initial_students.join(
        models.init(model, jax.random.key(0), SIDE), initial.variables
    )
    variables = initial_students.join(variables, {"params": {"head": params["head"]}})
    expected: Any = original.apply({"params": params}, images)
    logits: Any = model.apply(variables, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_positions_are_resized_to_the_images_and_reported(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    _, params = teacher(rng)
    pretrained = vit_students.read(saved(tmp_path / "x", params, "vit_jax"), tiny_run.VIT_NAME)
    model: Any = tiny_run.VIT_STUDENT.make(classes=9)

    variables, report = vit_students.variables(pretrained, model, image_size=64)

    flat = augreg.flatten(variables["params"])
    expected = matching.resize_positions(augreg.flatten(params)[names.POSITION], 65)
    np.testing.assert_array_equal(flat[names.POSITION], expected)
    assert report.resized == (names.POSITION,)
    assert report.reset == matching.HEAD


@pytest.mark.parametrize("form", ["vit_jax", "timm"])
def test_a_checkpoint_of_another_size_is_named(
    form: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    _, params = teacher(rng)
    path = saved(tmp_path / "x", params, form)

    with pytest.raises(SettingError, match=r"is a ViT of .* set config.student.model to vit_pair"):
        read(path, 48, "vit_tiny_patch16")


def test_published_weights_of_another_size_are_refused_before_the_download() -> None:
    with pytest.raises(SettingError, match=r"augreg:S/16 is a ViT-S/16, .* to vit_small_patch16"):
        initial_students.read(
            "augreg:S/16",
            student="vit_tiny_patch16",
            stem="imagenet",
            image_size=48,
            mean=(),
            std=(),
        )


def test_a_vit_for_a_convolutional_student_is_refused(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    _, params = teacher(rng)

    with pytest.raises(SettingError, match=r"holds a ViT, and config\.student\.model is resnet18"):
        read(saved(tmp_path / "x", params, "timm"), name="resnet18")
    with pytest.raises(SettingError, match=r"a ViT, and config\.student\.model is resnet18"):
        read(saved(tmp_path / "x", params, "vit_jax"), name="resnet18")


def test_a_network_for_a_vit_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    timm.save(path, {"fc.weight": np.ones((3, 2), np.float32)})

    with pytest.raises(SettingError, match=r"not a supported ViT.*fc\.weight"):
        read(path)


def test_missing_arrays_are_named(rng: np.random.Generator, tmp_path: pathlib.Path) -> None:
    _, params = teacher(rng)
    arrays = augreg.flatten(params)
    del arrays["Transformer/encoder_norm/bias"]
    np.savez(tmp_path / "x.npz", **arrays)  # pyright: ignore[reportArgumentType]

    with pytest.raises(SettingError, match=r"missing: Transformer/encoder_norm/bias"):
        read(tmp_path / "x.npz")


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_a_teacher_exported_for_timm_keeps_its_gelu(
    gelu: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    _, params = teacher(rng)
    path = tmp_path / "x.safetensors"
    timm.save(path, timm_names.to_timm(augreg.flatten(params)), {"gelu": gelu})

    assert read(path).architecture["gelu"] == gelu


@pytest.mark.parametrize("name", ["vit_tiny_patch16_384", "deit_tiny_patch16_224"])
def test_timms_other_names_of_the_network_are_accepted(
    name: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    _, params = teacher(rng)
    path = saved(tmp_path / "x", params, "timm")
    config = {"architecture": name, "pretrained_cfg": {"mean": IMAGENET.mean, "std": IMAGENET.std}}
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert read(path).normalisation == IMAGENET


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_a_students_file_is_read_back_with_its_head_and_as_initial_weights_with_its_gelu(
    gelu: str, rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    model: Any = tiny_run.VIT_STUDENT.make(classes=CLASSES, gelu=gelu)
    variables, path = drawn(model, rng), tmp_path / "x.safetensors"
    metadata = {"architecture": f'{{"gelu": "{gelu}", "pool": "cls"}}', "image_range": "-1 to 1"}

    students.save(path, variables, metadata=metadata)

    jax.tree.map(np.testing.assert_array_equal, students.load(path, model), variables)
    initial = read(path)
    assert initial.architecture == {"pool": "cls", "gelu": gelu}
    head = {"params": {"head": variables["params"]["head"]}}
    jax.tree.map(
        np.testing.assert_array_equal, initial_students.join(initial.variables, head), variables
    )


def test_a_student_has_no_names_in_torchvision(
    rng: np.random.Generator, tmp_path: pathlib.Path
) -> None:
    variables = drawn(tiny_run.VIT_STUDENT.make(classes=CLASSES), rng)
    with pytest.raises(ValueError, match="form 'timm'"):
        students.save(tmp_path / "x.safetensors", variables, form="torchvision")


def test_a_student_from_augregs_ti_16_has_timms_logits_on_real_images(
    shared: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (path,) = (shared / "weights").glob(f"{TI_16}*.npz")
    initial = read(path, 224, "vit_tiny_patch16")
    model = models.make("vit_tiny_patch16", classes=1000, **initial.architecture)
    head = augreg.read(path).arrays
    variables = initial_students.join(
        initial.variables,
        {"params": {"head": {n: head[f"head/{n}"] for n in ("kernel", "bias")}}},
    )
    students.save(tmp_path / "x.safetensors", variables)
    theirs = peers.timm().create_model(
        "vit_tiny_patch16_224",
        **models.STUDENTS["vit_tiny_patch16"].timm_options(initial.architecture, 224),
    )
    state = {
        n: peers.torch().from_numpy(a) for n, a in timm.read(tmp_path / "x.safetensors").items()
    }
    theirs.eval().load_state_dict(state, strict=True)
    images = reference_images()

    logits = jax.jit(model.apply)(variables, jnp.asarray(images))

    with peers.torch().no_grad():
        expected = theirs(nchw(images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)

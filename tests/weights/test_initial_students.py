"""Pretrained weights of students: what is accepted, what is refused, and their normalisation."""

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from remem_jax import models
from remem_jax.checks import SettingError
from remem_jax.models import normalisation, resnet
from remem_jax.models.normalisation import Normalisation
from remem_jax.weights import (
    hub,
    initial_students,
    student_catalog,
    student_sources,
    students,
    timm,
)
from tests import tiny_run
from tests.oracles import peers
from tests.weights import tiny_imagenet
from tests.weights.test_students import filled

# Small networks with the published weights of others.
TINY = {
    "tiny": tiny_run.STUDENT._replace(timm="resnet18"),
    "tiny34": tiny_run.STUDENT._replace(timm="resnet34"),
    "tiny_lite": tiny_run.STUDENT._replace(timm="tf_efficientnet_lite0"),
    "tiny_wide": models.Student(functools.partial(resnet.make, depths=(1, 1)), ("fc/kernel",)),
}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the small networks to the table of students."""
    for name, student in TINY.items():
        monkeypatch.setitem(models.STUDENTS, name, student)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves five students in the table, because tracing all of them takes long."""
    for name in models.STUDENTS.keys() - {
        "resnet18",
        "resnet34",
        "mobilenet_v2",
        "mobilenet_v2_050",
        "tiny",
    }:
        monkeypatch.delitem(models.STUDENTS, name)


def read(path: pathlib.Path, student: str, stem: str = "imagenet", **given: Any) -> Any:
    options = {"mean": (), "std": (), **given}
    return initial_students.read(str(path), student=student, stem=stem, image_size=64, **options)


def save(
    path: pathlib.Path,
    student: str = "tiny",
    stem: str = "imagenet",
    *,
    form: str = "timm",
    metadata: dict[str, str] | None = None,
) -> Any:
    """Writes random weights with a head of five classes, and returns them."""
    model = models.make(student, classes=5, stem=stem)
    variables = filled(model, np.random.default_rng(0))
    students.save(path, variables, form=form, metadata=metadata)
    return variables


@pytest.mark.parametrize(
    ("student", "form"),
    [("tiny", "timm"), ("mobilenet_v2", "timm"), ("mobilenet_v2", "torchvision")],
)
def test_everything_but_the_head_is_loaded(student: str, form: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    saved = save(path, student, form=form)
    ours = filled(models.make(student, classes=3), np.random.default_rng(1))

    joined = initial_students.join(ours, read(path, student).variables)

    head = {f"params/{name}" for name in models.STUDENTS[student].head}
    expected = students.named(saved) | {name: students.named(ours)[name] for name in head}
    assert students.named(joined).keys() == expected.keys()
    for name, array in students.named(joined).items():
        np.testing.assert_array_equal(array, expected[name])


def test_a_file_may_lack_the_head_and_the_counts_of_batches(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    saved = save(path)
    arrays = timm.read(path)
    kept = {n: a for n, a in arrays.items() if "num_batches" not in n and not n.startswith("fc")}
    assert len(kept) < len(arrays) - 2
    timm.save(path, {f"module.{name}": array for name, array in kept.items()})

    loaded = students.named(read(path, "tiny").variables)

    for name, array in students.named(saved).items():
        if "/fc/" not in name:
            np.testing.assert_array_equal(loaded[name], array)


def test_half_precision_becomes_float32(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path)
    half = {n: a.astype(np.float16) for n, a in timm.read(path).items() if a.dtype == np.float32}
    timm.save(path, half)

    loaded = read(path, "tiny").variables

    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        loaded["batch_stats"]["bn1"]["var"], half["bn1.running_var"].astype(np.float32)
    )


@pytest.mark.parametrize(
    ("held", "stem", "message"),
    [
        ("mobilenet_v2_050", "imagenet", "holds a mobilenet_v2_050.*set config.student.model to"),
        ("resnet34", "imagenet", "holds a resnet34, and config.student.model is mobilenet_v2"),
        ("resnet18", "small", "holds a resnet18, and config.student.model is mobilenet_v2"),
    ],
)
@pytest.mark.usefixtures("few")
def test_another_network_is_named(
    held: str, stem: str, message: str, tmp_path: pathlib.Path
) -> None:
    save(tmp_path / "x.safetensors", held, stem)

    with pytest.raises(SettingError, match=message):
        read(tmp_path / "x.safetensors", "mobilenet_v2")


def test_another_stem_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path)
    with pytest.raises(SettingError, match=r"the stem 'imagenet', and config\.student\.stem is"):
        read(path, "tiny", "small")

    save(path, metadata={"model": "tiny", "stem": "small"})  # MobileNets' have equal shapes.
    with pytest.raises(SettingError, match="was trained with the stem 'small'"):
        read(path, "tiny")


@pytest.mark.usefixtures("few")
def test_arrays_that_fit_no_network_are_listed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path)
    arrays = timm.read(path)
    arrays["bn1.gate"] = arrays.pop("bn1.bias")
    timm.save(path, arrays)

    with pytest.raises(SettingError, match=r"missing: params/bn1/bias; unexpected: params/bn1/ga"):
        read(path, "tiny")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path)
    arrays = timm.read(path)
    arrays["bn1.running_mean"][3] = bad
    timm.save(path, arrays)

    with pytest.raises(SettingError, match=r"NaN or infinity.*set config\.student\.init"):
        read(path, "tiny")


def test_quantised_weights_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path)
    timm.save(path, timm.read(path) | {"conv1.weight": np.ones((64, 3, 7, 7), np.int8)})

    with pytest.raises(SettingError, match=r"holds integers.*params/conv1/kernel"):
        read(path, "tiny")


def test_a_network_of_equal_names_and_shapes_is_refused_by_its_name(
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "model.safetensors"
    save(path, "tiny_lite")
    # timm's own Lite0 pads symmetrically, that of Google and ours as TensorFlow.
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "efficientnet_lite0"}))

    with pytest.raises(SettingError, match=r"timm's efficientnet_lite0.*tf_efficientnet_lite0 in"):
        read(path, "tiny_lite")


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("resnet18", "cannot be 'resnet18'.*similar: resnet18.tv_in1k.*'imagenet' is the first"),
        ("https://huggingface.co/timm/resnet18.a1_in1k", "cannot be 'https:.*a repository on the"),
        ("mobilenetv2_050.lamb_in1k", "weights of mobilenetv2_050, and config.student.model is"),
        ("weights/none.safetensors", r"no weights weights/none\.safetensors"),
        ("/weights/none", "no weights /weights/none"),
        ("weights.pth", "is a pickle, which may run code"),
        ("augreg:Ti/16", "a ViT, and config.student.model is resnet18"),
        ("vit.npz", "a ViT, and config.student.model is resnet18"),
    ],
)
def test_other_values_are_refused_before_any_work(init: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as refusal:
        student_sources.check(init, "resnet18")
    assert "config.student" in str(refusal.value) or "pickle" in str(refusal.value)


@pytest.mark.parametrize("init", ["imagenet", "resnet18.tv_in1k", "me/mine", "hf-hub:me/mine@v1"])
def test_published_names_need_no_network_to_be_checked(init: str) -> None:
    student_sources.check(init, "resnet18")


IMAGENET = normalisation.IMAGENET
LITE = student_catalog.LITE
UNIT = {"mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.mark.parametrize(
    ("name", "student", "metadata", "config", "expected"),
    [
        ("x", "tiny", {}, {}, IMAGENET),  # As in all published weights of it.
        ("x", "tiny_lite", {}, {}, LITE),
        ("resnet34.ra4_e3600_r224_in1k", "tiny34", {}, {}, normalisation.IDENTITY),
        ("resnet34.a1_in1k", "tiny34", {}, {}, IMAGENET),
        ("x", "tiny34", {}, {"architecture": "resnet34", "pretrained_cfg": UNIT}, "unit"),
        ("x", "tiny34", {}, {"architecture": "resnet34", **UNIT}, "unit"),
        ("x", "tiny34", {k: json.dumps(v) for k, v in UNIT.items()}, {}, "unit"),
        ("x", "tiny34", {"image_range": "[-1, 1]"}, {}, normalisation.IDENTITY),
    ],
)
def test_the_normalisation_is_that_of_the_weights(
    name: str, student: str, metadata: Any, config: Any, expected: Any, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / f"{name}.safetensors"
    save(path, student, metadata=metadata)
    if config:
        (tmp_path / "config.json").write_text(json.dumps(config))

    initial = read(path, student)

    unit = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert initial.normalisation == (unit if expected == "unit" else expected)
    assert initial.record["mean"] == list(initial.normalisation.mean)


def test_a_normalisation_that_is_unknown_must_be_given(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save(path, "tiny34")

    with pytest.raises(SettingError, match=r"set both, for example --config\.student\.mean="):
        read(path, "tiny34")
    given = read(path, "tiny34", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))

    assert given.normalisation == Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    other = read(path, "tiny34", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.7))
    assert other.digest != given.digest


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.5,), "must both have a value for red, green and blue"),
        ((0.5, 0.5, 0.5), (), "must both have a value for red, green and blue"),
        ((0.5, 0.5, 0.5), (0.5, 0.0, 0.5), r"config\.student\.std must be above 0"),
    ],
)
def test_a_normalisation_has_three_channels(mean: Any, std: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        normalisation.given("config.student", mean, std)


def test_real_weights_classify_real_images_as_in_timm(shared: pathlib.Path) -> None:
    for file in (tiny_imagenet.WEIGHTS, tiny_imagenet.IMAGES):
        if not (shared / file).is_file():
            pytest.skip(f"Needs {shared / file}.")
    peers.timm()
    drawn = tiny_imagenet.sample(shared, 20)

    logits = tiny_imagenet.ours(shared, drawn.pixels)

    expected = tiny_imagenet.of_timm(shared, drawn.pixels)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert drawn.top1(logits) == drawn.top1(expected)
    # Of 300 images, timm has 56.0 % among the 200 classes; tests/weights/tiny_imagenet.py shows it.
    assert drawn.top1(logits)[1] > 0.3


def fetched(tmp_path: pathlib.Path, config: Any) -> Any:
    """Replaces `hub.fetch`: every repository has these weights."""
    path = tmp_path / "model.safetensors"
    save(path)
    return lambda name, setting: hub.Fetched(path, config, f"commit of {name}")


def test_recommended_weights_come_from_the_hub(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"architecture": "resnet18", "pretrained_cfg": {**UNIT, "license": "other"}}
    monkeypatch.setattr(hub, "fetch", fetched(tmp_path, config))

    record = read(pathlib.Path("imagenet"), "tiny").record

    assert record["repository"] == "timm/resnet18.a1_in1k"
    assert record["commit"] == "commit of timm/resnet18.a1_in1k"
    assert (record["licence"], record["pretraining"]) == ("apache-2.0", "ImageNet-1k")
    assert record["mean"] == list(IMAGENET.mean)  # The catalogue's.


def test_any_repository_may_be_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"architecture": "resnet18", "pretrained_cfg": {**UNIT, "license": "mit"}}
    monkeypatch.setattr(hub, "fetch", fetched(tmp_path, config))

    record = read(pathlib.Path("me/mine"), "tiny").record

    assert (record["repository"], record["licence"]) == ("me/mine", "mit")
    assert (record["mean"], record["std"]) == (UNIT["mean"], UNIT["std"])
    with pytest.raises(
        SettingError, match=r"timm's resnet18, and config\.student\.model is tiny34"
    ):
        read(pathlib.Path("me/mine"), "tiny34")
    with pytest.raises(SettingError, match="was trained with the stem 'imagenet'"):
        read(pathlib.Path("me/mine"), "tiny", "small")
